"""Holders over NIXL, in both forms of SGLang's protocol.

Up to SGLang 0.5.21 each write carries a notification with its own number, and decode counts the
numbers, whoever sends them. From 0.5.23 on writes carry none: as over Mooncake the pool controller
tells decode once all holders have reported that their writes are over (``Dispatcher.finish_room``).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.srt.disaggregation.nixl.conn import NixlKVManager

from sglang_cdsp.releases import nixl_writes_notify
from sglang_cdsp.transfer.manager import PoolKVManager

logger = logging.getLogger(__name__)


class NixlPoolManager(PoolKVManager, NixlKVManager):
    """``NixlKVManager`` for a pool member."""

    @property
    def writes_notify(self) -> bool:
        """Whether SGLang's calls that write take a notification for decode."""
        return nixl_writes_notify()

    def _post_pages(
        self,
        info: Any,
        src_pages: npt.NDArray[np.int32],
        dst_pages: npt.NDArray[np.int32],
        send_id: int,
        last: bool,
    ) -> Any:
        peer = self.decode_kv_args_table[info.agent_name]
        note: tuple[str, ...] = ()
        if self.writes_notify:
            note = (f"{info.room}_kv_{send_id}_{int(last)}_{self.transfer_source_rank}",)
        if peer.decode_tp_size != self.attn_tp_size:
            return self.send_kvcache_slice(info.agent_name, src_pages, dst_pages, *note)
        return self.send_kvcache(
            info.agent_name,
            src_pages,
            peer.dst_kv_ptrs,
            dst_pages,
            peer.gpu_id,
            *note,
            dst_mem_kind=peer.dst_homogeneous_mem_kind,
        )

    def _post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> Any:
        peer = self.decode_kv_args_table[info.agent_name]
        note: tuple[str, ...] = ()
        if self.writes_notify:
            count = f"_nokv_{self.transfer_source_rank}_{send_id}" if bare else ""
            note = (f"{info.room}_aux{count}",)
        return self.send_aux(
            info.agent_name, aux_index, peer.dst_aux_ptrs, info.dst_aux_index, *note
        )

    def _outcome(self, handle: Any) -> str | None:
        try:
            state = self.agent.check_xfer_state(handle)
        except Exception as error:
            # NIXL raises where the partner is gone. Its other writes, to live ones, go on.
            return str(error) or repr(error)
        return {"DONE": "", "ERR": "NIXL reports an error"}.get(state)

    def _forget_posted(self, handles: list[Any]) -> None:
        for handle in handles:
            try:
                self.agent.release_xfer_handle(handle)
            except Exception as error:
                logger.debug("NIXL keeps the handle of a write that has ended: %s", error)
