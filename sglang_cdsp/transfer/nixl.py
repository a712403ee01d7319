"""Holders over NIXL, in both forms of SGLang's protocol.

Up to SGLang 0.5.21 decode counts notifications with the numbers of transfers, whoever sends them;
each goes once the transfer's writes have ended well, which is when NIXL itself would send it. From
0.5.23 on there are none: as over Mooncake the pool controller tells decode once all holders have
reported that their writes are over (``Dispatcher.finish_room``).

Writes are posted from one thread and polled from another. SGLang's agent is made for that: it locks
(``NIXL_THREAD_SYNC_STRICT``), because SGLang's own senders use it from several threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.srt.disaggregation.nixl.conn import NixlKVManager

from sglang_cdsp.releases import nixl_writes_notify
from sglang_cdsp.transfer.chunk_write import ChunkWrite
from sglang_cdsp.transfer.failures import TransferFailed
from sglang_cdsp.transfer.manager import PoolKVManager
from sglang_cdsp.transfer.pages import Pages, posts
from sglang_cdsp.transfer.progress_thread import calm_progress_thread

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int32]
# How often an agent that cannot be reached is taken in again: its lists of pages are long.
TAKE_BACK_EVERY_S = 1.0
# After so long without a room an agent's lists are dropped when another one comes: every start of a
# decode server is a new agent, and the lists of the former ones would fill the memory.
UNUSED_S = 600.0


class NixlPoolManager(PoolKVManager, NixlKVManager):
    """``NixlKVManager`` for a pool member."""

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        calm_progress_thread()
        super().__init__(*args, **kwargs)

    def _start_bootstrap_thread(self) -> None:
        """Start SGLang's thread for decode's messages, so that it does not outlive the scheduler.

        It reads for ever, and SGLang makes no daemon of it: a scheduler that is told to end would
        wait for it until the server kills it, 15 s later. What a daemon starts is a daemon, too.
        """
        starter = threading.Thread(target=super()._start_bootstrap_thread, daemon=True)
        starter.start()
        starter.join()

    # -- peers ----------------------------------------------------------------------------

    def _add_remote_peer(self, decode_kv_args: Any) -> None:
        """Take a decode agent in; stock calls this in the thread that reads decode's messages.

        An agent that comes back under its name with other memory takes the place of the former one,
        which stock would keep. One that cannot be taken in, as it has died meanwhile, must not end
        that thread: nobody would hear of any room here any more.
        """
        self._drop_unused()
        name = decode_kv_args.agent_name
        self._used_s[name] = self.clock()
        known = self.decode_kv_args_table.get(name)
        if known is not None and known.agent_metadata != decode_kv_args.agent_metadata:
            self.forget_peer(name)
        try:
            super()._add_remote_peer(decode_kv_args)
        except Exception:
            logger.exception("sglang-cdsp: decode's agent %s cannot be written to", name)
            self.forget_peer(name)

    def forget_peer(self, name: str) -> None:
        """Drop what was prepared for a decode agent; writes to it that are under way fail.

        The lists of its pages go when the last write that uses them has been made.
        """
        for table in (self.decode_kv_args_table, self.prep_handles, self.prep_handles_slice_dst):
            table.pop(name, None)
        try:
            self.agent.remove_remote_agent(name)
        except Exception as error:
            logger.debug("NIXL does not drop decode's agent %s: %s", name, error)

    def _drop_unused(self) -> None:
        """Drop what was prepared for agents that have had no room for long; not who they are."""
        late_s = self.clock() - UNUSED_S
        busy = {name for infos in list(self.transfer_infos.values()) for name in list(infos)}
        for name in [n for n, used_s in list(self._used_s.items()) if used_s < late_s]:
            peer = self.decode_kv_args_table.get(name)
            if name not in busy and peer is not None:
                del self._used_s[name]
                self.forget_peer(name)
                self.decode_kv_args_table[name] = peer

    def open_write(self, room: int, *args: Any, **kwargs: Any) -> ChunkWrite:
        """See ``PoolKVManager``."""
        self._take_back(room)
        return super().open_write(room, *args, **kwargs)

    def add_transfer_request(self, bootstrap_room: int, *args: Any, **kwargs: Any) -> None:
        """Stock's write of a one-instance request."""
        self._take_back(bootstrap_room)
        super().add_transfer_request(bootstrap_room, *args, **kwargs)

    def _take_back(self, room: int) -> None:
        """Take in again those of a room's agents whose connection broke, or that were unused.

        NIXL drops what it knows of an agent when a write to it ends with a broken connection, and
        decode registers once only: every later write to a server that is well would fail. SGLang
        0.5.23 does the same for its own writes.
        """
        now_s = self.clock()
        for name in list(self.transfer_infos.get(room, ())):
            peer = self.decode_kv_args_table.get(name)
            if peer is None:
                continue
            self._used_s[name] = now_s
            if self.agent.check_remote_metadata(name):
                continue
            if now_s < self._taken_back_s.get(name, 0.0) + TAKE_BACK_EVERY_S:
                continue
            self._taken_back_s[name] = now_s
            logger.info("the connection to decode's agent %s is made anew", name)
            self.forget_peer(name)
            self._add_remote_peer(peer)
            # Who names pages is there, or will be: the next write tries again.
            self.decode_kv_args_table.setdefault(name, peer)

    @cached_property
    def _used_s(self) -> dict[str, float]:
        """When agents registered or had a room last, monotonic seconds."""
        return {}

    @cached_property
    def _taken_back_s(self) -> dict[str, float]:
        """When agents were taken in again, monotonic seconds."""
        return {}

    # -- writes ---------------------------------------------------------------------------

    @property
    def writes_notify(self) -> bool:
        """Whether SGLang's calls that write take a notification for decode."""
        return nixl_writes_notify()

    def posts_of(self, info: Any, pages: Pages) -> tuple[Pages, ...]:
        """NIXL merges neighbours of whole pages; slices of heads are a piece for each token."""
        buffers = max(map(len, self.layer_buffers.values()))
        if info.agent_name in self.prep_handles_slice_dst:
            return posts(pages, per_run=0, per_page=buffers * self.kv_args.page_size)
        return posts(pages, per_run=buffers, per_page=0)

    def post_layer(self, info: Any, pages: Pages, layer_id: int) -> Any:
        """Write a layer's pages, out of the lists that SGLang prepared for whole models."""
        buffers, name = self.layer_buffers[layer_id], info.agent_name
        if name in self.prep_handles_slice_dst:
            here, groups, _, slots = self.prep_handle_slice_src
            there, slots_there, group = self.prep_handles_slice_dst[name]
            page = self.kv_args.page_size
            source = in_list(buffers, slots * page * groups, of_tokens(pages.source, page) * groups)
            source += np.int32(group)
            place = in_list(buffers, slots_there * page, of_tokens(pages.place, page))
        else:
            if name not in self.prep_handles:
                raise TransferFailed("decode's KV lies in memory of several kinds")
            here, there = self.prep_handles[""], self.prep_handles[name]
            slots_there = self.decode_kv_args_table[name].dst_num_slots
            source = in_list(buffers, self._num_slots_src, pages.source)
            place = in_list(buffers, slots_there or self._num_slots_src, pages.place)
        handle = self.agent.make_prepped_xfer("WRITE", here, source, there, place)
        if not handle:
            raise TransferFailed("NIXL made no transfer")
        try:
            state = self.agent.transfer(handle)
        except Exception as error:
            self.forget_posted(handle)
            raise TransferFailed(str(error) or repr(error), uncertain=True) from error
        if state == "ERR":
            self.forget_posted(handle)
            raise TransferFailed("NIXL does not take it", uncertain=True)
        return handle

    def post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> Any:
        """Write the metadata buffer; its notification counts earlier transfers if it is bare."""
        peer = self.decode_kv_args_table[info.agent_name]
        note: tuple[str, ...] = ()
        if self.writes_notify:
            count = f"_nokv_{self.transfer_source_rank}_{send_id}" if bare else ""
            note = (f"{info.room}_aux{count}",)
        try:
            return self.send_aux(
                info.agent_name, aux_index, peer.dst_aux_ptrs, info.dst_aux_index, *note
            )
        except Exception as error:
            # SGLang's call does not say how far it came.
            raise TransferFailed(str(error) or repr(error), uncertain=True) from error

    def say_written(self, info: Any, send_id: int, *, last: bool) -> None:
        """Send the notification that decode counts, where it counts them."""
        if self.writes_notify:
            note = f"{info.room}_kv_{send_id}_{int(last)}_{self.transfer_source_rank}"
            self.agent.send_notif(info.agent_name, note.encode("ascii"))

    def outcome(self, handle: Any) -> str | None:
        """See ``chunk_write.Wire``."""
        try:
            state = self.agent.check_xfer_state(handle)
        except Exception as error:
            # NIXL raises where the partner is gone. Its other writes, to live ones, go on.
            return str(error) or repr(error)
        return {"DONE": "", "ERR": "NIXL reports an error"}.get(state)

    def forget_posted(self, handle: Any) -> None:
        """Release a handle; what is still under way of a failed one is given up."""
        try:
            self.agent.release_xfer_handle(handle)
        except Exception as error:
            logger.debug("NIXL keeps the handle of a write that has ended: %s", error)


def of_tokens(pages: Indices, page_size: int) -> Indices:
    """Slots of all tokens of some pages, ``[pages * page_size]`` int32."""
    tokens = np.arange(page_size, dtype=np.int32)
    return (pages[:, None] * np.int32(page_size) + tokens).ravel()


def in_list(buffers: Sequence[int], entries: int, indices: Indices) -> Indices:
    """Positions in a list that has ``entries`` for each KV buffer, ``[buffers * indices]`` int32.

    SGLang's prepared lists hold all of the first buffer, then all of the second, and so on.
    """
    starts = np.array(buffers, dtype=np.int64) * entries
    return (starts[:, None] + indices).ravel().astype(np.int32)
