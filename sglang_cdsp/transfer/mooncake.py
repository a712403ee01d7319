"""Holders over Mooncake: their writes carry no notes, so decode waits for one word at the end.

The pool controller says it once all holders have reported that their writes are confirmed
(``Dispatcher.finish_room``). SGLang's calls into Mooncake block, hence the threads.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.disaggregation.mooncake.conn import MooncakeKVManager, MooncakeKVSender
from sglang.srt.environ import envs

from sglang_cdsp.transfer.manager import PoolKVManager, TransferFailed
from sglang_cdsp.transfer.mooncake_engine import PatientEngine

WRITERS = 2
# How often decode servers to which a write has failed are tried again.
PROBE_INTERVAL_S = 5.0


class MooncakePoolManager(PoolKVManager, MooncakeKVManager):
    """``MooncakeKVManager`` for a pool member."""

    engine: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Else one write that failed costs this instance the decode server for good.
        defaults = (
            (envs.SGLANG_ENABLE_FAILED_SESSION_PROBE, True),
            (envs.SGLANG_FAILED_SESSION_PROBE_INTERVAL_S, PROBE_INTERVAL_S),
        )
        with ExitStack() as stack:
            for variable, value in defaults:
                if not variable.is_set():
                    stack.enter_context(variable.override(value))
            super().__init__(*args, **kwargs)
        if not torch.cuda.is_available():
            keep_page_numbers_on_the_host()
        self._writers = ThreadPoolExecutor(WRITERS, "cdsp-kv-write")

    def init_engine(self) -> None:
        """Stock's engine; its senders of one-instance requests wait with patience too."""
        super().init_engine()
        self.engine = PatientEngine(self.engine)

    def _post_pages(
        self,
        info: Any,
        src_pages: npt.NDArray[np.int32],
        dst_pages: npt.NDArray[np.int32],
        send_id: int,
        last: bool,
    ) -> Future[None]:
        return self._writers.submit(self._write_pages, info, src_pages, dst_pages)

    def _post_metadata(
        self, info: Any, aux_index: int, send_id: int, *, bare: bool
    ) -> Future[None]:
        return self._writers.submit(self._write_metadata, info, aux_index)

    def _write_pages(
        self, info: Any, src_pages: npt.NDArray[np.int32], dst_pages: npt.NDArray[np.int32]
    ) -> None:
        session = info.mooncake_session_id
        peer = self.decode_kv_args_table[session]
        self._check_session(session)
        # Stock hands the pool on for layers sent one by one; ours may all wait in this call.
        layers = self.executors[0]
        if peer.dst_attn_tp_size == self.attn_tp_size:
            code = self.send_kvcache(
                session,
                src_pages,
                peer.dst_kv_ptrs,
                dst_pages,
                layers,
                dst_layer_ids=peer.dst_kv_layer_ids,
                dst_kv_item_len=peer.dst_kv_item_len,
                dst_attn_tp_size=peer.dst_attn_tp_size,
            )
        else:
            code = self.send_kvcache_slice(
                session,
                src_pages,
                peer.dst_kv_ptrs,
                dst_pages,
                peer.dst_tp_rank,
                peer.dst_attn_tp_size,
                peer.dst_kv_item_len,
                layers,
                dst_layer_ids=peer.dst_kv_layer_ids,
            )
        self._confirm(info, code)

    def _write_metadata(self, info: Any, aux_index: int) -> None:
        session = info.mooncake_session_id
        self._check_session(session)
        peer = self.decode_kv_args_table[session]
        self._confirm(info, self.send_aux(info, aux_index, peer.dst_aux_ptrs))

    def _check_session(self, session: str) -> None:
        """Stock's rule: a session that failed is dead until it registers or answers a probe."""
        with self.session_lock:
            if session in self.failed_sessions:
                raise TransferFailed(f"decode's Mooncake session {session} is not alive")

    def _confirm(self, info: Any, code: int) -> None:
        if code == 0:
            return
        session = info.mooncake_session_id
        with self.session_lock:
            self.session_failures[session] += 1
            self.failed_sessions.add(session)
        raise TransferFailed(f"Mooncake status {code} from decode's session {session}")

    def _outcome(self, handle: Any) -> str | None:
        if not handle.done():
            return None
        error = handle.exception()
        return "" if error is None else str(error) or repr(error)


def keep_page_numbers_on_the_host() -> None:
    """Let stock's senders of one-instance requests hand over page numbers without CUDA.

    SGLang 0.5.23 copies them to pinned memory behind a CUDA event, unless its sender says that it
    cannot take them so.
    """
    MooncakeKVSender.supports_host_tensor_indices = False
