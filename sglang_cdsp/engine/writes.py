"""A chunk's KV on its way to decode, from this instance: where each page of its shard goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sglang_cdsp.engine.stock import StockScheduler
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import Send, number_sends

if TYPE_CHECKING:
    from sglang_cdsp.transfer.chunk_write import ChunkWrite
    from sglang_cdsp.transfer.manager import PoolKVManager


def begin_write(
    manager: PoolKVManager, task: ChunkTask, chunk: int, instance: int
) -> ChunkWrite | None:
    """Open the transfer of ``instance``'s shard of ``chunk``, this one's, if it has one.

    Decode's page list starts at the first position that decode does not hold yet, so a shard's
    pages find their places by position alone. Call it once the slots of the chunk are taken and
    decode's pages are known; nothing is posted before ``ChunkWrite.layer_stored``.

    Returns:
        The write, which is among ``task.writes`` from now on; None if decode gets nothing of this
        shard.
    """
    assert task.room is not None
    prefix = manager.decode_prefix(task.room)
    send = next(
        (
            send
            for send in number_sends(task.layouts, prefix)
            if (send.instance, send.chunk) == (instance, chunk)
        ),
        None,
    )
    if send is None:
        return None
    pages, places = _pages_and_places(task, send, prefix, manager.kv_args.page_size)
    write = manager.open_write(task.room, pages, places, send.send_id, last=send.last)
    task.writes.append((chunk, write))
    return write


def finish_write(scheduler: StockScheduler, task: ChunkTask, write: ChunkWrite) -> None:
    """All layers of the chunk are computed: the rest may go, at home with the metadata."""
    aux_index = None
    if write.last:
        assert task.req is not None
        scheduler.disagg_metadata_buffers.set_buf(task.req)
        aux_index = task.req.metadata_buffer_index
        task.req.time_stats.set_prefill_transfer_queue_entry_time()
    write.computed(aux_index=aux_index)


def _pages_and_places(
    task: ChunkTask, send: Send, prefix: int, page_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Source pages here and their indices in decode's page list, in the same order."""
    pages: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for span in send.spans:
        pages.append(task.slot_table.pages(span).cpu().numpy())
        places.append(np.arange(span.start - prefix, span.stop - prefix, page_size) // page_size)
    if not pages:
        return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    return np.concatenate(pages).astype(np.int32), np.concatenate(places)


def cancel_writes(task: ChunkTask) -> None:
    """The task was dropped or failed: post nothing more; what was posted has yet to end."""
    for _, write in task.writes:
        write.cancel()


def poll_writes(task: ChunkTask) -> None:
    """Forget the writes that have ended; never blocks.

    Raises:
        TransferFailed: a write ended badly; it is forgotten, the others stay.
    """
    for posted in list(task.writes):
        ended = True
        try:
            ended = posted[1].poll()
        finally:
            if ended:
                task.writes = [other for other in task.writes if other is not posted]


def written_before(task: ChunkTask, chunk: int) -> bool:
    """Whether the writes of the chunks before ``chunk`` have ended; never blocks.

    Raises:
        TransferFailed: as ``poll_writes``.
    """
    poll_writes(task)
    return all(written >= chunk for written, _ in task.writes)
