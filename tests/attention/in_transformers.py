"""A group's members in place of transformers' own attention, layer after layer of a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.families.claims import claim
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.spans import Span, split_chunk
from tests.engine.family_models import Pool
from tests.parallel.ring_cases import in_threads, rows_of

PAGE = 4

Plan = Sequence[tuple[int, tuple[int, ...]]]
"""Chunks, tokens and group each."""


class Members:
    """The instances of a pool, which compute one layer's attention after the other by a plan.

    Attributes:
        layers: numbers of those that were computed.
    """

    def __init__(self, plan: Plan, lanes: Sequence[Lane], chunk_size: int | None = None) -> None:
        """``chunk_size``: of a model with chunked attention in layers with RoPE."""
        self._plan, self._lanes, self._chunk_size = plan, lanes, chunk_size
        self.layers: list[int] = []

    def attention(
        self, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        """In place of transformers' own: ``[1, H, T, D]`` each to ``[1, T, H, D]``."""
        self.layers.append(module.layer_idx)
        by_row = [x[0].transpose(0, 1) for x in (q, k, v)]
        heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[3]
        chunked = self._chunk_size is not None and bool(module.use_rope)
        layer = RadixAttention(heads, dim, more["scaling"], kv_heads, layer_id=0, use_irope=chunked)
        if more.get("sliding_window") is not None:
            layer.sliding_window_size = more["sliding_window"] - 1
        instances, tokens = len(self._lanes), by_row[0].shape[0]
        pools = [Pool(tokens, ((kv_heads, dim),) * 2) for _ in range(instances)]
        held: list[tuple[Span, ...]] = [() for _ in range(instances)]
        out = torch.empty_like(by_row[0])
        start = 0
        for tokens, group in self._plan:
            pieces = split_chunk(start, tokens, len(group), PAGE)
            history = tuple(held[instance] for instance in group)
            parts = self._chunk(layer, by_row, pools, group, history, pieces, more.get("s_aux"))
            for instance, own, part in zip(group, pieces, parts, strict=True):
                out[rows_of(own)] = part.view(-1, heads, dim)
                held[instance] += own
            start += tokens
        return out.unsqueeze(0), None

    def _chunk(
        self,
        layer: RadixAttention,
        by_row: Sequence[torch.Tensor],
        pools: Sequence[Pool],
        group: tuple[int, ...],
        history: tuple[tuple[Span, ...], ...],
        pieces: tuple[tuple[Span, ...], ...],
        sinks: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        model: Any = torch.nn.ModuleList([layer])
        model.config = SimpleNamespace(attention_chunk_size=self._chunk_size)
        families = claim(model).families
        keywords: dict[str, Any] = {} if sinks is None else {"sinks": sinks}
        rows_held = tuple(len(rows_of(spans)) for spans in history)

        def member(me: int) -> torch.Tensor:
            # A row's slot is its place in the prompt.
            own, past = rows_of(pieces[me]), rows_of(history[me])
            pool = SimpleNamespace(token_to_kv_pool=pools[group[me]], req_to_token_pool=None)
            attention = ShardAttention(
                inner=pool,
                layout=RingLayout(group, me, rows_held, pieces),
                links=self._lanes[group[me]],
                own_slots=own,
                history_slots=past,
                rebalancer=None,
                history=history,
                families=families,
            )
            batch: Any = SimpleNamespace(out_cache_loc=own)
            q, k, v = (rows[own].flatten(1) for rows in by_row)
            with torch.inference_mode():
                return attention.forward(q, k, v, layer, batch, **keywords)

        return list(in_threads(member, range(len(group))))
