"""Holders over Mooncake: their writes carry no notes, so decode waits for one word at the end.

The pool controller says it once all holders have reported that their writes are confirmed
(``Dispatcher.finish_room``). A post returns when its write has ended: the posting threads wait.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from sglang.srt.disaggregation.common.staging_buffer import compute_head_slice_params
from sglang.srt.disaggregation.mooncake.conn import MooncakeKVManager, MooncakeKVSender
from sglang.srt.disaggregation.utils import build_transfer_entry_pairs
from sglang.srt.environ import envs

from sglang_cdsp.transfer.failures import TransferFailed
from sglang_cdsp.transfer.manager import PoolKVManager
from sglang_cdsp.transfer.mooncake_engine import PatientEngine
from sglang_cdsp.transfer.pages import Pages, posts, runs

WRITERS = 2
Block = tuple[int, int, int]  # address here, address there, bytes
# How often decode servers to which a write has failed are tried again.
PROBE_INTERVAL_S = 5.0


class MooncakePoolManager(PoolKVManager, MooncakeKVManager):
    """``MooncakeKVManager`` for a pool member."""

    engine: Any
    posting_threads = WRITERS

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

    def init_engine(self) -> None:
        """Stock's engine; its senders of one-instance requests wait with patience too."""
        super().init_engine()
        self.engine = PatientEngine(self.engine)

    def posts_of(self, info: Any, pages: Pages) -> tuple[Pages, ...]:
        """A run of whole pages is one block; of slices of heads each token is one."""
        buffers = max(map(len, self.layer_buffers.values()))
        if self._sliced(self.decode_kv_args_table[info.mooncake_session_id]):
            return posts(pages, per_run=0, per_page=buffers * self.kv_args.page_size)
        return posts(pages, per_run=buffers, per_page=0)

    def post_layer(self, info: Any, pages: Pages, layer_id: int) -> None:
        """Write a layer's pages; returns when they have arrived."""
        session = info.mooncake_session_id
        peer = self.decode_kv_args_table[session]
        self._check_session(session)
        self._validate_envelope_kv_layout(
            peer.dst_kv_ptrs, peer.dst_kv_item_len, peer.dst_attn_tp_size
        )
        blocks_of = self._slices if self._sliced(peer) else self._runs
        blocks = [
            block
            for number in self.layer_buffers[layer_id]
            for block in blocks_of(peer, pages, number, self._place_of(peer)[number])
        ]
        self._confirm(info, self._transfer_data(session, blocks))

    def post_metadata(self, info: Any, aux_index: int, send_id: int, *, bare: bool) -> None:
        """Write the metadata buffer; returns when it has arrived."""
        session = info.mooncake_session_id
        self._check_session(session)
        peer = self.decode_kv_args_table[session]
        self._confirm(info, self.send_aux(info, aux_index, peer.dst_aux_ptrs))

    def outcome(self, handle: None) -> str:
        """What was posted has ended well; else posting it failed."""
        return ""

    def _sliced(self, peer: Any) -> bool:
        """Whether a decode rank holds other heads than this rank, so that pages are not alike."""
        whole = self.is_mla_backend or self.is_hybrid_mla_backend
        return not whole and bool(peer.dst_attn_tp_size != self.attn_tp_size)

    def _place_of(self, peer: Any) -> list[int]:
        """Addresses of decode's buffers in the order of ours, paired as SGLang pairs them."""
        args, theirs = self.kv_args, peer.dst_kv_ptrs
        if args.kv_layer_ids or peer.dst_kv_layer_ids:
            pairs = build_transfer_entry_pairs(
                args.kv_layer_ids,
                peer.dst_kv_layer_ids,
                len(args.kv_data_ptrs),
                len(theirs),
                allow_positional_fallback=True,
            )
            return [theirs[there] for _, there in pairs]
        if self.is_mla_backend or self.is_hybrid_mla_backend:
            return list(self.get_mla_kv_ptrs_with_pp(args.kv_data_ptrs, theirs)[1])
        _, _, keys, values, layers = self.get_mha_kv_ptrs_with_pp(args.kv_data_ptrs, theirs)
        return [*keys[:layers], *values[:layers]]

    def _runs(self, peer: Any, pages: Pages, number: int, there: int) -> list[Block]:
        """Blocks of whole pages of one buffer."""
        here, size = self.kv_args.kv_data_ptrs[number], self.kv_args.kv_item_lens[number]
        starts = runs(pages)
        lengths = np.diff(np.append(starts, len(pages)))
        return [
            (here + source * size, there + place * size, length * size)
            for source, place, length in zip(
                pages.source[starts].tolist(),
                pages.place[starts].tolist(),
                lengths.tolist(),
                strict=True,
            )
        ]

    def _slices(self, peer: Any, pages: Pages, number: int, there: int) -> list[Block]:
        """Blocks of each token's heads that a decode rank holds, of one buffer."""
        args, page = self.kv_args, self.kv_args.page_size
        here, size = args.kv_data_ptrs[number], args.kv_item_lens[number]
        # Tensor parallelism over more ranks than heads repeats heads: a rank's own count misleads.
        heads = getattr(args, "total_kv_head_num", 0) or args.kv_head_num * self.attn_tp_size
        first, count, first_there, _ = compute_head_slice_params(
            self.attn_tp_size, peer.dst_attn_tp_size, args.engine_rank, peer.dst_tp_rank, heads
        )
        token, token_there = size // page, peer.dst_kv_item_len // page
        head = token_there // max(1, heads // peer.dst_attn_tp_size)
        if (first_there + count) * head > token_there:
            raise TransferFailed(
                f"{count} heads of {head} bytes do not fit into decode's {token_there} a token"
            )
        tokens = np.arange(page, dtype=np.int64)
        source = here + pages.source.astype(np.int64)[:, None] * size + tokens * token
        place = there + pages.place.astype(np.int64)[:, None] * peer.dst_kv_item_len
        place = place + tokens * token_there + first_there * head
        return [
            (a, b, count * head)
            for a, b in zip(
                (source + first * head).ravel().tolist(), place.ravel().tolist(), strict=True
            )
        ]

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
        # Bytes that a socket or a network card has taken may still arrive.
        message = f"Mooncake status {code} from decode's session {session}"
        raise TransferFailed(message, uncertain=True)


def keep_page_numbers_on_the_host() -> None:
    """Let stock's senders of one-instance requests hand over page numbers without CUDA.

    SGLang 0.5.23 copies them to pinned memory behind a CUDA event, unless its sender says that it
    cannot take them so.
    """
    MooncakeKVSender.supports_host_tensor_indices = False
