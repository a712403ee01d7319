"""The attention backend of a chunk task: SGLang calls it layer by layer during one forward.

It is published in SGLang's forward context for the duration of a chunk's forward and nowhere
else, so stock batches keep the configured backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from sglang_cdsp.attention.layer_check import check_layer
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.ring import Keep, RingLayout, q_ring_attention, ring_attention
from sglang_cdsp.attention.steps import KvRing, LayerShape, QRing, ring_of
from sglang_cdsp.parallel.links.types import Exchanger, GiveWay

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_cdsp.parallel.gather import Gather
    from sglang_cdsp.parallel.rebalancer import Rebalancer


class ShardAttention:
    """Exact attention of one member's shard over history and chunk, with its SP group.

    Attributes:
        token_to_kv_pool, req_to_token_pool: the instance's pools, where SGLang's model layer
            looks for them.
    """

    def __init__(
        self,
        *,
        inner: Any,
        layout: RingLayout,
        links: Exchanger | None,
        own_slots: torch.Tensor,
        history_slots: torch.Tensor,
        rebalancer: Rebalancer | None,
        give_way: GiveWay | None = None,
        tile_flops: float | None = None,
        stored: Callable[[int], None] | None = None,
        kept_slots: Sequence[torch.Tensor] | None = None,
        gather: Gather | None = None,
    ) -> None:
        """Prepare for one forward.

        Args:
            inner: the instance's configured attention backend (for its pools).
            layout: who holds and computes what, see :class:`RingLayout`.
            links: to the other instances; None for a group of one.
            own_slots: KV slots of the shard's tokens, ascending positions, int64 ``[T]``.
            history_slots: KV slots of the history held here, int64 ``[H]``.
            rebalancer: moves history one layer ahead; None when nothing moves.
            give_way: called with None between ring steps and between tiles.
            tile_flops: floating-point operations of a tile of attention at most; None for no
                tiles. The same at all ranks of an instance.
            stored: called with a layer's number once its KV is in the pool.
            kept_slots: where this member, which is to end with all KV, keeps each member's block,
                history then chunk, int64 ``[rows]`` by index; None for a member that keeps nothing.
            gather: brings KV to the member that keeps it where nothing circulates past that.
        """
        self._kept_slots = kept_slots
        self._gather = gather
        self.token_to_kv_pool = inner.token_to_kv_pool
        self.req_to_token_pool = inner.req_to_token_pool
        self._layout = layout
        self._links = links
        self._own = own_slots
        self._history = history_slots
        self._rebalancer = rebalancer
        self._pacing = Pacing(give_way, tile_flops)
        self._stored = stored
        self._rings: dict[LayerShape, KvRing | QRing] = {}

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **unknown: Any,
    ) -> torch.Tensor:
        """Store the shard's KV and return its attention output, ``[rows, heads * head_dim]``.

        The rows may be more than the shard's tokens: a member without tokens runs one padding
        row, whose output is zero. Without ``save_kv_cache`` the model has stored the KV already
        (some kernels rotate and store in one go), and what it stored is what counts.
        """
        check_layer(layer, unknown, k, v)
        pool = self.token_to_kv_pool
        if save_kv_cache:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        if self._stored is not None:
            self._stored(layer.layer_id)
        if self._rebalancer is not None:
            self._rebalancer.before_attention(layer.layer_id)
        tokens = self._own.numel()
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        shape = (-1, layer.tp_q_head_num, layer.qk_head_dim)
        own_k = k.view(-1, layer.tp_k_head_num, layer.qk_head_dim)[:tokens]
        own_v = v.view(-1, layer.tp_v_head_num, layer.v_head_dim)[:tokens]
        if not save_kv_cache:
            own_k, own_v = keys[self._own], values[self._own]
        parts = (q.view(shape)[:tokens], own_k, own_v, keys[self._history], values[self._history])
        out = self._attend(parts, layer, k.element_size())
        if self._gather is not None and not self._passes_by(layer, k.element_size()):
            self._gather.after_attention(layer.layer_id)
        if self._rebalancer is not None:
            self._rebalancer.after_attention(layer.layer_id)
        rows = q.view(shape).shape[0]
        result = q.new_zeros((rows, layer.tp_q_head_num * layer.v_head_dim))
        result[:tokens] = out.flatten(1)
        return result

    def _ring(self, layer: RadixAttention, element_size: int) -> KvRing | QRing:
        """What circulates for a layer: the way that moves fewer bytes."""
        shape = LayerShape(
            layer.tp_k_head_num,
            layer.tp_q_head_num,
            layer.qk_head_dim,
            layer.v_head_dim,
            element_size,
        )
        ring = self._rings.get(shape)
        if ring is None:
            ring = self._rings[shape] = ring_of(self._layout, shape)
        return ring

    def _passes_by(self, layer: RadixAttention, element_size: int) -> bool:
        """Whether every block comes past the member that keeps all: that sees each of them."""
        return isinstance(self._ring(layer, element_size), KvRing)

    def _keeper(self, layer: RadixAttention) -> Keep | None:
        """Stores the blocks of a layer that come past, at the member that keeps them."""
        slots = self._kept_slots
        if slots is None:
            return None
        pool = self.token_to_kv_pool
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)

        def keep(holder: int, k: torch.Tensor, v: torch.Tensor) -> None:
            keys.index_copy_(0, slots[holder], k)
            values.index_copy_(0, slots[holder], v)

        return keep

    def _attend(
        self, parts: tuple[torch.Tensor, ...], layer: RadixAttention, element_size: int
    ) -> torch.Tensor:
        """Attention of q, k, v and the history's k and v, the way that moves fewer bytes."""
        ring = self._ring(layer, element_size)
        q, k, v, k_history, v_history = parts
        if isinstance(ring, KvRing):
            return ring_attention(
                q, k, v, k_history, v_history, self._layout, self._links,
                scale=layer.scaling, ring=ring, layer=layer.layer_id, pacing=self._pacing,
                keep=self._keeper(layer),
            )  # fmt: skip
        return q_ring_attention(
            q, k, v, k_history, v_history, self._layout, self._links,
            scale=layer.scaling, ring=ring, layer=layer.layer_id, pacing=self._pacing,
        )  # fmt: skip
