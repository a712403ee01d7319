"""A prefill instance's KV manager in the pool: many holders, one decode room.

Stock SGLang lets one prefill rank send a request's pages in order. Here every holder of a
request's KV writes its own pages, with SGLang's own calls; decode's side is stock. The manager
registers nowhere: the pool controller is what decode contacts, and it passes decode's messages on.
What differs by transfer engine is in ``nixl.py`` and ``mooncake.py``.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from sglang.srt.disaggregation.common.conn import CommonKVManager
from sglang.srt.utils.network import NetworkAddress

logger = logging.getLogger(__name__)


class TransferFailed(RuntimeError):
    """A KV write to decode failed; names the room."""


@dataclass
class ShardWrite:
    """Writes of one shard in flight; poll it with :meth:`PoolKVManager.settled`.

    Attributes:
        room: bootstrap room.
        handles: the transfer engine's transfers, until all have ended.
        error: why a part of it could not be posted, "" for none.
    """

    room: int
    handles: list[Any] = field(default_factory=list)
    error: str = ""


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

    def write_shard(
        self,
        room: int,
        src_pages: npt.NDArray[np.int32],
        dst_index: npt.NDArray[np.int64],
        send_id: int,
        *,
        last: bool,
        aux_index: int | None = None,
    ) -> ShardWrite:
        """Start writing one shard's pages to every decode agent of the room; never blocks.

        A part that cannot be posted is an error of the write, told by :meth:`settled`: parts that
        were posted before go on writing to decode's pages until they have ended.

        Args:
            room: bootstrap room.
            src_pages: page numbers in this instance's pool, ``[pages]`` int32.
            dst_index: for each page its index in decode's page list, ``[pages]``.
            send_id: number of this transfer, see ``parallel.chunk_layout.number_sends``.
            last: home's final transfer: it also carries the metadata buffer ``aux_index``.
        """
        write = ShardWrite(room)
        try:
            for info in list(self.transfer_infos[room].values()):
                if info.is_dummy:
                    continue
                if len(src_pages):
                    dst_pages = info.dst_kv_indices[dst_index]
                    write.handles.append(
                        self._post_pages(info, src_pages, dst_pages, send_id, last)
                    )
                if last:
                    assert aux_index is not None
                    write.handles.append(
                        self._post_metadata(info, aux_index, send_id, bare=not len(src_pages))
                    )
        except Exception as error:
            write.error = f"could not start: {error}"
            self._say_once(room, write.error)
        return write

    def settled(self, write: ShardWrite) -> bool:
        """Whether the write has ended; never blocks.

        Raises:
            TransferFailed: once all that was posted has ended, if a part failed or was not posted.
        """
        outcomes = [self._outcome(handle) for handle in write.handles]
        if None in outcomes:
            return False
        self._forget_posted(write.handles)
        write.handles.clear()
        failed = next((f"failed: {outcome}" for outcome in outcomes if outcome), "")
        error, write.error = write.error or failed, ""
        if error:
            self._say_once(write.room, error)
            raise TransferFailed(f"KV write for room {write.room} {error}")
        return True

    def _say_once(self, room: int, error: str) -> None:
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

    @abstractmethod
    def _post_pages(
        self,
        info: Any,
        src_pages: npt.NDArray[np.int32],
        dst_pages: npt.NDArray[np.int32],
        send_id: int,
        last: bool,
    ) -> Any:
        """Start writing pages to the decode agent of ``info``; returns a handle."""

    @abstractmethod
    def _post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> Any:
        """Start writing the metadata buffer; ``bare``: without pages. Returns a handle."""

    @abstractmethod
    def _outcome(self, handle: Any) -> str | None:
        """None while a transfer is in flight, then "" or what went wrong."""

    def _forget_posted(self, handles: list[Any]) -> None:
        """Give back what the engine keeps for transfers that have ended."""
