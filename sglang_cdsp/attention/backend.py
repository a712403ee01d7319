"""The attention backend of a chunk task: SGLang calls it layer by layer during one forward.

It is published in SGLang's forward context for the duration of a chunk's forward and nowhere
else, so stock batches keep the configured backend. What a layer computes is its family's
(``families/``); here is what all layers have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from sglang_cdsp.attention.families.grouped import Grouped
from sglang_cdsp.attention.families.types import AtWork, Family, LayerCall, ShardChunk
from sglang_cdsp.attention.layer_check import check_layer
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.paged_kernel import PAGED_KERNELS, PagedKernel
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.links.types import Exchanger, GiveWay
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.rebalancer import rows_of_layer
from sglang_cdsp.parallel.spans import Span

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_cdsp.parallel.gather import Gather
    from sglang_cdsp.parallel.rebalancer import Rebalancer

GROUPED = Grouped()


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
        history: Sequence[tuple[Span, ...]] = (),
        families: Mapping[int, Family] | None = None,
        ranks: Ranks = ALONE,
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
            gather: brings KV to the member that keeps it where not every block comes past that.
            kernels: that read the pool, in the order of preference; where none can serve a layer
                rows are gathered.
            history: by member, the spans of the history that it holds, in the order of their rows.
            families: of the model's layers, by number; grouped-query attention for the others.
            ranks: the instance's tensor parallelism.
        """
        self.token_to_kv_pool = inner.token_to_kv_pool
        self.req_to_token_pool = inner.req_to_token_pool
        self._chunk = ShardChunk(
            layout=layout,
            links=links,
            slots=torch.cat((history_slots, own_slots)),
            history=tuple(history),
            pacing=Pacing(give_way, tile_flops),
            kept_slots=kept_slots,
            kernels=kernels,
            ranks=ranks,
        )
        self._rebalancer = rebalancer
        self._stored = stored
        self._gather = gather
        self._families = families or {}
        self._at_work: dict[Family, AtWork] = {}

    @property
    def form(self) -> str:
        """What SGLang's layers shall compute where they ask; see ``AtWork``."""
        forms = (self._begun(family).form for family in set(self._families.values()))
        return next(filter(None, forms), "")

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **keywords: Any,
    ) -> torch.Tensor:
        """Store the shard's KV and return its attention output, ``[rows, heads * head_dim]``.

        The rows may be more than the shard's tokens: a member without tokens runs one padding
        row, whose output is zero. Without ``save_kv_cache`` the model has stored the KV already
        (some kernels rotate and store in one go), and what it stored is what counts.

        Raises:
            UnsupportedLayer: the layer or its call is not one that its family can run.
            LinkError: a partner is gone.
        """
        family = self._families.get(layer.layer_id, GROUPED)
        check_layer(layer, keywords, k, v, known=family.keywords, faults=family.faults)
        pool = self.token_to_kv_pool
        if save_kv_cache:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        if self._stored is not None:
            self._stored(layer.layer_id)
        if self._rebalancer is not None:
            self._rebalancer.before_attention(layer.layer_id)
        tokens = self._chunk.layout.own_tokens
        by_head = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        call = LayerCall(
            layer,
            by_head[:tokens],
            k.view(-1, layer.tp_k_head_num, layer.qk_head_dim)[:tokens],
            v.view(-1, layer.tp_v_head_num, layer.v_head_dim)[:tokens],
            save_kv_cache,
            rows_of_layer(pool, layer.layer_id),
            keywords,
        )
        at_work = self._begun(family)
        out = at_work.attend(call)
        if self._gather is not None and not at_work.passes_all(call):
            self._gather.after_attention(layer.layer_id)
        if self._rebalancer is not None:
            self._rebalancer.after_attention(layer.layer_id)
        result = q.new_zeros((by_head.shape[0], layer.tp_q_head_num * layer.v_head_dim))
        result[:tokens] = out.flatten(1)
        return result

    def _begun(self, family: Family) -> AtWork:
        """The family's work on this chunk, begun at its first layer."""
        at_work = self._at_work.get(family)
        if at_work is None:
            at_work = self._at_work[family] = family.begin(self._chunk)
        return at_work
