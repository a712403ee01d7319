"""SGLang's NIXL manager on a prefill instance of the pool: many holders, one decode room.

Stock NIXL lets one prefill rank send a request's pages in order. Here every holder of a
request's KV writes its own pages and notifies decode with its own number; decode's side is
stock (it counts the numbers as a set). The manager registers nowhere: the pool controller is
what decode contacts, and it passes decode's messages on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from sglang.srt.disaggregation.nixl.conn import NixlKVManager
from sglang.srt.utils.network import NetworkAddress

logger = logging.getLogger(__name__)


class TransferFailed(RuntimeError):
    """A KV write to decode failed; names the room."""


@dataclass
class ShardWrite:
    """Writes of one shard in flight; poll it with :meth:`PoolKVManager.settled`."""

    room: int
    handles: list[Any] = field(default_factory=list)


class PoolKVManager(NixlKVManager):
    """``NixlKVManager`` for a pool member; see the module's text."""

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

    def await_room(self, room: int, timeout_s: float = 5.0) -> None:
        """Wait the moment that the manager's thread needs to take in injected messages.

        Raises:
            TransferFailed: if the room is still unknown after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while not self.knows_room(room):
            if time.monotonic() > deadline:
                raise TransferFailed(
                    f"decode's pages for room {room} did not reach this instance in {timeout_s} s"
                )
            time.sleep(0.0002)

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
        """Start writing one shard's pages to every decode agent of the room.

        Args:
            room: bootstrap room.
            src_pages: page numbers in this instance's pool, ``[pages]`` int32.
            dst_index: for each page its index in decode's page list, ``[pages]``.
            send_id: number of this transfer, see ``engine.layout.number_sends``.
            last: home's final transfer: it also carries the metadata buffer ``aux_index``.

        Raises:
            TransferFailed: if a write cannot be posted; writes posted before are awaited.
        """
        write = ShardWrite(room)
        rank = self.transfer_source_rank
        try:
            for info in list(self.transfer_infos[room].values()):
                if info.is_dummy:
                    continue
                peer = self.decode_kv_args_table[info.agent_name]
                if len(src_pages):
                    write.handles.append(
                        self._post_pages(info, peer, src_pages, dst_index, send_id, last)
                    )
                if last:
                    assert aux_index is not None
                    bare = "" if len(src_pages) else f"_nokv_{rank}_{send_id}"
                    write.handles.append(
                        self.send_aux(
                            info.agent_name,
                            aux_index,
                            peer.dst_aux_ptrs,
                            info.dst_aux_index,
                            f"{room}_aux{bare}",
                        )
                    )
        except Exception as error:
            self._await_handles(write.handles, failure_seen=True)
            raise TransferFailed(f"KV write for room {room} could not start: {error}") from error
        return write

    def _post_pages(
        self,
        info: Any,
        peer: Any,
        src_pages: npt.NDArray[np.int32],
        dst_index: npt.NDArray[np.int64],
        send_id: int,
        last: bool,
    ) -> Any:
        note = f"{info.room}_kv_{send_id}_{int(last)}_{self.transfer_source_rank}"
        dst_pages = info.dst_kv_indices[dst_index]
        if peer.decode_tp_size != self.attn_tp_size:
            return self.send_kvcache_slice(info.agent_name, src_pages, dst_pages, note)
        return self.send_kvcache(
            info.agent_name,
            src_pages,
            peer.dst_kv_ptrs,
            dst_pages,
            peer.gpu_id,
            note,
            dst_mem_kind=peer.dst_homogeneous_mem_kind,
        )

    def settled(self, write: ShardWrite) -> bool:
        """Whether the write has ended; never blocks.

        Raises:
            TransferFailed: once it has ended and a part of it failed.
        """
        states = [self.agent.check_xfer_state(handle) for handle in write.handles]
        if any(state not in ("DONE", "ERR") for state in states):
            return False
        failed = "ERR" in states
        for handle in write.handles:
            self.agent.release_xfer_handle(handle)
        write.handles.clear()
        if failed:
            raise TransferFailed(f"KV write for room {write.room} failed")
        return True

    def forget_room(self, room: int) -> None:
        """Drop all that is known of a room, so that its number can be used again."""
        for table in (
            self.transfer_infos,
            self.request_status,
            self.req_to_decode_prefix_len,
            self.failure_records,
        ):
            table.pop(room, None)
