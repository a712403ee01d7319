"""A prefill instance's KV manager in the pool: many holders, one decode room.

Stock SGLang lets one prefill rank send a request's pages in order. Here every holder of a
request's KV writes its own pages, a layer at a time, with what SGLang prepared for its own writes;
decode's side is stock. The manager registers nowhere: the pool controller is what decode contacts,
and it passes decode's messages on. What differs by transfer engine is in ``nixl.py`` and
``mooncake.py``.
"""

from __future__ import annotations

import logging
import os
import time
from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zmq
from sglang.srt.disaggregation.common.conn import CommonKVManager
from sglang.srt.utils.network import NetworkAddress

from sglang_cdsp.transfer.chunk_write import AT_ONCE_VAR, ChunkWrite, Destination, DeviceEvent
from sglang_cdsp.transfer.failures import TransferFailed
from sglang_cdsp.transfer.pages import Pages, buffers_by_layer
from sglang_cdsp.transfer.poster import Poster, PostingThreads

logger = logging.getLogger(__name__)


class PoolKVManager(CommonKVManager):
    """A prefill rank's KV manager in the pool: it writes its own pages of any room.

    Subclasses say how, by transfer engine.
    """

    def register_to_bootstrap(self) -> None:
        """Nothing to do: the pool controller registers for the whole pool."""

    def inject(self, frames: list[bytes]) -> None:
        """Hand over a message that decode sent to the controller.

        It goes through the manager's own socket, so that stock code parses it in its thread.
        """
        if not hasattr(self, "_loopback"):
            self._loopback = self._zmq_ctx.socket(zmq.PUSH)
            self._loopback.setsockopt(zmq.LINGER, 0)
            self._loopback.connect(NetworkAddress(self.local_ip, self.rank_port).to_tcp())
        self._loopback.send_multipart(frames)

    def knows_room(self, room: int) -> bool:
        """Whether decode's pages for ``room`` and the agents that own them are known here."""
        infos = self.transfer_infos.get(room)
        if not infos:
            return False
        required = next(iter(infos.values())).required_dst_info_num
        known = all(name in self.decode_kv_args_table for name in list(infos))
        return len(infos) >= required and known

    def room_is_here(self, room: int, due_s: float) -> bool:
        """Whether the manager's thread has taken in decode's words about ``room``; never blocks.

        Args:
            due_s: when it should have, monotonic seconds.

        Raises:
            TransferFailed: it is too late.
        """
        if self.knows_room(room):
            return True
        if time.monotonic() > due_s:
            raise TransferFailed(f"decode's pages for room {room} did not reach this instance")
        return False

    def decode_prefix(self, room: int) -> int:
        """Leading prompt tokens that decode holds already (its radix cache)."""
        return int(self.req_to_decode_prefix_len.get(room, 0) or 0)

    # -- writes ---------------------------------------------------------------------------

    @cached_property
    def layer_buffers(self) -> dict[int, tuple[int, ...]]:
        """Numbers of the KV buffers that hold each layer of the model."""
        args = self.kv_args
        return buffers_by_layer(
            len(args.kv_data_ptrs),
            args.kv_layer_ids,
            first=args.prefill_start_layer,
            paired=not (self.is_mla_backend or self.is_hybrid_mla_backend),
        )

    @cached_property
    def poster(self) -> Poster:
        """The threads that post this manager's writes."""
        return PostingThreads(self.posting_threads, self._use_device)

    @property
    def _on_device(self) -> bool:
        """Whether KV lies in a device's memory, which is written behind the loop's back."""
        return torch.cuda.is_available()

    def _use_device(self) -> None:
        if self._on_device:
            torch.cuda.set_device(self.kv_args.gpu_id)

    def open_write(
        self,
        room: int,
        src_pages: npt.NDArray[np.int32],
        dst_index: npt.NDArray[np.int64],
        send_id: int,
        *,
        last: bool,
    ) -> ChunkWrite:
        """Prepare the write of one shard's pages to every decode agent of the room.

        Args:
            room: bootstrap room, whose pages are known.
            src_pages: page numbers in this instance's pool, ``[pages]`` int32.
            dst_index: for each page its index in decode's page list, ``[pages]``.
            send_id: number of this transfer, see ``parallel.chunk_layout.number_sends``.
            last: home's final transfer: the metadata buffer goes with it.
        """
        destinations = []
        for info in list(self.transfer_infos[room].values()):
            if not info.is_dummy:
                places = info.dst_kv_indices[dst_index] if len(src_pages) else src_pages
                pages = Pages(src_pages, places.astype(np.int32))
                destinations.append(Destination(info, self.posts_of(info, pages)))
        return ChunkWrite(
            self,
            self.poster,
            room=room,
            layers=tuple(self.layer_buffers),
            destinations=destinations,
            send_id=send_id,
            last=last,
            at_once=bool(os.environ.get(AT_ONCE_VAR)),
        )

    def mark(self) -> DeviceEvent | None:
        """An event of the current stream on CUDA; host memory is written by the time we know."""
        if not self._on_device:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def log_failure(self, room: int, error: str) -> None:
        """Log the first error of a room; when decode dies every write of its rooms fails."""
        if room not in self.failure_records:
            self.failure_records[room] = error
            logger.error("a KV write for room %d %s", room, error)

    def forget_room(self, room: int) -> None:
        """Drop all that is known of a room, so that its number can be used again."""
        for table in (
            self.transfer_infos,
            self.request_status,
            self.req_to_decode_prefix_len,
            self.failure_records,
        ):
            table.pop(room, None)

    # -- by transfer engine ---------------------------------------------------------------

    posting_threads = 1

    @abstractmethod
    def posts_of(self, info: Any, pages: Pages) -> tuple[Pages, ...]:
        """Cut a layer's pages for a decode agent into posts of bounded size."""

    @abstractmethod
    def post_layer(self, info: Any, pages: Pages, layer_id: int) -> Any:
        """See ``chunk_write.Wire``."""

    @abstractmethod
    def post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> Any:
        """See ``chunk_write.Wire``."""

    @abstractmethod
    def outcome(self, handle: Any) -> str | None:
        """None while a transfer is in flight, then "" or what went wrong."""

    def say_written(self, info: Any, send_id: int, *, last: bool) -> None:
        """Nothing: the pool controller has the last word, see ``Dispatcher.finish_room``."""

    def forget_posted(self, handle: Any) -> None:
        """Nothing is kept for a transfer that has ended."""
