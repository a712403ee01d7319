"""Grouped-query attention: causal softmax attention over all earlier tokens, K and V a row a token.

The block of K and V circulates, or Q does where that is fewer bytes. Multi-head and multi-query
attention are its borders. Sinks may take a part of the softmax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.attention.families.types import (
    Exchange,
    LayerCall,
    LayerSpec,
    ShardChunk,
    keeper,
    key_value_buffers,
)
from sglang_cdsp.attention.layer_check import odd_features
from sglang_cdsp.attention.paged import PagedReader, paged_reader
from sglang_cdsp.attention.pool_block import PoolBlock
from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.attention.steps import KvRing, LayerShape, QRing, ring_of

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention


class Grouped:
    """The family; see ``Family``."""

    name = "grouped-query attention"
    keywords = frozenset({"sinks"})
    modules = 1

    def faults(self, layer: RadixAttention) -> list[str]:
        """See ``Family``."""
        return odd_features(layer)

    def spec(self, layer: RadixAttention) -> LayerSpec:
        """See ``Family``."""
        return LayerSpec(self.name, (Exchange.CIRCULATE,), key_value_buffers(layer))

    def begin(self, chunk: ShardChunk) -> GroupedAtWork:
        """See ``Family``."""
        return GroupedAtWork(chunk)


class GroupedAtWork:
    """Grouped-query attention on one shard of one chunk; see ``AtWork``.

    Steps and plans of kernels are worked out at the first layer of each shape.
    """

    form = ""

    def __init__(self, chunk: ShardChunk) -> None:
        self._chunk = chunk
        self._rings: dict[LayerShape, KvRing | QRing] = {}
        self._readers: dict[tuple[LayerShape, torch.dtype, float], PagedReader | None] = {}

    def passes_all(self, call: LayerCall) -> bool:
        """See ``AtWork``. Where queries circulate, no block does."""
        return isinstance(self._ring(shape_of(call)), KvRing)

    def attend(self, call: LayerCall) -> torch.Tensor:
        """See ``AtWork``."""
        layer, chunk = call.layer, self._chunk
        keys, values = call.buffers
        shape = shape_of(call)
        ring = self._ring(shape)
        block = PoolBlock(
            keys,
            values,
            chunk.slots,
            chunk.layout.history_tokens[chunk.layout.me],
            (call.k, call.v) if call.saved else None,
            self._reader(ring, shape, call.q.dtype, layer.scaling),
        )
        common: dict[str, Any] = {
            "scale": layer.scaling,
            "layer": layer.layer_id,
            "pacing": chunk.pacing,
            "sinks": call.keywords.get("sinks"),
        }
        if isinstance(ring, KvRing):
            keep = keeper(chunk, call.buffers, block.shape.stored)
            return ring_attention(
                call.q, block, chunk.layout, chunk.links, ring=ring, keep=keep, **common
            )
        return q_ring_attention(call.q, block, chunk.layout, chunk.links, ring=ring, **common)

    def _ring(self, shape: LayerShape) -> KvRing | QRing:
        """What circulates for layers of a shape: the way that moves fewer bytes."""
        ring = self._rings.get(shape)
        if ring is None:
            ring = self._rings[shape] = ring_of(self._chunk.layout, shape)
        return ring

    def _reader(
        self, ring: KvRing | QRing, shape: LayerShape, dtype: torch.dtype, scale: float
    ) -> PagedReader | None:
        """What reads the pool for layers of this kind, planned at the first of them."""
        kind, chunk = (shape, dtype, scale), self._chunk
        if kind not in self._readers:
            self._readers[kind] = paged_reader(
                chunk.kernels, chunk.layout, ring, chunk.slots, shape, dtype, scale, chunk.pacing
            )
        return self._readers[kind]


def shape_of(call: LayerCall) -> LayerShape:
    """The shape of a call's layer on this rank."""
    layer = call.layer
    return LayerShape(
        layer.tp_k_head_num,
        layer.tp_q_head_num,
        layer.qk_head_dim,
        layer.v_head_dim,
        call.q.element_size(),
    )
