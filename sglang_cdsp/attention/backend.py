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
from sglang_cdsp.attention.paged import PagedReader, paged_reader
from sglang_cdsp.attention.paged_kernel import PAGED_KERNELS, PagedKernel
from sglang_cdsp.attention.pool_block import PoolBlock
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
        kernels: Sequence[PagedKernel] = PAGED_KERNELS,
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
            kernels: that read the pool, in the order of preference; where none can serve a layer
                rows are gathered.
        """
        self._kept_slots = kept_slots
        self._gather = gather
        self.token_to_kv_pool = inner.token_to_kv_pool
        self.req_to_token_pool = inner.req_to_token_pool
        self._layout = layout
        self._links = links
        self._slots = torch.cat((history_slots, own_slots))
        self._rebalancer = rebalancer
        self._pacing = Pacing(give_way, tile_flops)
        self._stored = stored
        self._kernels = kernels
        self._rings: dict[LayerShape, KvRing | QRing] = {}
        self._readers: dict[tuple[LayerShape, torch.dtype, float], PagedReader | None] = {}

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
        tokens = self._layout.own_tokens
        by_head = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        own = None
        if save_kv_cache:
            own = (
                k.view(-1, layer.tp_k_head_num, layer.qk_head_dim)[:tokens],
                v.view(-1, layer.tp_v_head_num, layer.v_head_dim)[:tokens],
            )
        shape = LayerShape(
            layer.tp_k_head_num,
            layer.tp_q_head_num,
            layer.qk_head_dim,
            layer.v_head_dim,
            q.element_size(),
        )
        ring = self._ring(shape)
        out = self._attend(by_head[:tokens], own, layer, shape, ring)
        if self._gather is not None and isinstance(ring, QRing):
            # Where KV circulates every block has come past the member that keeps all.
            self._gather.after_attention(layer.layer_id)
        if self._rebalancer is not None:
            self._rebalancer.after_attention(layer.layer_id)
        result = q.new_zeros((by_head.shape[0], layer.tp_q_head_num * layer.v_head_dim))
        result[:tokens] = out.flatten(1)
        return result

    def _ring(self, shape: LayerShape) -> KvRing | QRing:
        """What circulates for layers of a shape: the way that moves fewer bytes."""
        ring = self._rings.get(shape)
        if ring is None:
            ring = self._rings[shape] = ring_of(self._layout, shape)
        return ring

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
        self,
        q: torch.Tensor,
        own: tuple[torch.Tensor, torch.Tensor] | None,
        layer: RadixAttention,
        shape: LayerShape,
        ring: KvRing | QRing,
    ) -> torch.Tensor:
        """Attention of the shard's queries.

        ``own`` is what was just stored for the shard, if it is at hand.
        """
        pool = self.token_to_kv_pool
        block = PoolBlock(
            pool.get_key_buffer(layer.layer_id),
            pool.get_value_buffer(layer.layer_id),
            self._slots,
            self._layout.history_tokens[self._layout.me],
            own,
            self._reader(ring, shape, q.dtype, layer.scaling),
        )
        if isinstance(ring, KvRing):
            return ring_attention(
                q, block, self._layout, self._links,
                scale=layer.scaling, ring=ring, layer=layer.layer_id, pacing=self._pacing,
                keep=self._keeper(layer),
            )  # fmt: skip
        return q_ring_attention(
            q, block, self._layout, self._links,
            scale=layer.scaling, ring=ring, layer=layer.layer_id, pacing=self._pacing,
        )  # fmt: skip

    def _reader(
        self, ring: KvRing | QRing, shape: LayerShape, dtype: torch.dtype, scale: float
    ) -> PagedReader | None:
        """What reads the pool for layers of this kind, planned at the first of them."""
        kind = shape, dtype, scale
        if kind not in self._readers:
            self._readers[kind] = paged_reader(
                self._kernels, self._layout, ring, self._slots, shape, dtype, scale, self._pacing
            )
        return self._readers[kind]
