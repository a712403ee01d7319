"""From a chunk's layout to a forward of the model on this instance's shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention, check_layer
from sglang_cdsp.attention.ring import RingLayout
from sglang_cdsp.engine.forward import ShardInput, build_forward_batch, run_forward
from sglang_cdsp.engine.holdings import Holdings
from sglang_cdsp.engine.layout import ChunkLayout
from sglang_cdsp.engine.rebalancer import Rebalancer
from sglang_cdsp.engine.sampling import sample_first_token, sampling_batch
from sglang_cdsp.parallel.layout import Span, tokens_of
from sglang_cdsp.parallel.mesh import Mesh

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


class ShardRunner:
    """Runs shards on one rank's model; knows nothing of queues."""

    def __init__(self, scheduler: Any, mesh: Mesh, me: int) -> None:
        """``me`` is this instance's number, which is also its rank in the mesh.

        Raises:
            UnsupportedLayer: the model has attention that chunk tasks cannot run.
        """
        self._scheduler = scheduler
        self._runner = scheduler.tp_worker.model_runner
        self._mesh = mesh
        self._me = me
        modules = [m for m in self._runner.model.modules() if isinstance(m, RadixAttention)]
        for module in modules:
            check_layer(module, {})
        self._layers = sorted(module.layer_id for module in modules)

    def run(self, layout: ChunkLayout, tokens: torch.Tensor, holdings: Holdings) -> None:
        """Compute the shard and store its KV in the slots of ``holdings``."""
        self._forward(layout, tokens, holdings, None)

    def run_and_sample(
        self, layout: ChunkLayout, tokens: torch.Tensor, holdings: Holdings, req: Req
    ) -> None:
        """The same at home for the plan's last chunk; leaves the first token in ``req``."""
        batch = sampling_batch(self._scheduler, req)
        forward, logits = self._forward(layout, tokens, holdings, batch)
        sample_first_token(self._scheduler, batch, forward, logits)

    def _forward(
        self,
        layout: ChunkLayout,
        tokens: torch.Tensor,
        holdings: Holdings,
        batch: ScheduleBatch | None,
    ) -> tuple[Any, Any]:
        spans = layout.shard(self._me)
        seat = layout.group.index(self._me)
        own = holdings.slots(spans)
        rows = positions_of(spans)
        shard = ShardInput(tokens[rows], rows, own).padded()
        attention = ShardAttention(
            inner=self._runner.attn_backend,
            layout=RingLayout(
                group=layout.group,
                me=seat,
                history_tokens=tuple(tokens_of(held) for held in layout.history),
                pieces=layout.spans,
            ),
            mesh=self._mesh if len(layout.group) > 1 else None,
            own_slots=own,
            history_slots=holdings.slots(layout.history[seat]),
            rebalancer=self._rebalancer(layout, holdings),
        )
        forward = build_forward_batch(shard, self._runner.device, batch)
        return forward, run_forward(self._runner, forward, attention)

    def _rebalancer(self, layout: ChunkLayout, holdings: Holdings) -> Rebalancer | None:
        mine = [move for move in layout.moves if self._me in (move.src, move.dst)]
        if not mine:
            return None
        return Rebalancer(
            pool=self._runner.token_to_kv_pool,
            layers=self._layers,
            moves=layout.moves,
            me=self._me,
            slots_of=lambda span: holdings.slots([span]),
            mesh=self._mesh,
        )


def positions_of(spans: tuple[Span, ...]) -> torch.Tensor:
    """Prompt positions of the spans in order, int64 ``[tokens]``."""
    if not spans:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])
