"""From a chunk's layout to a forward of the model on this instance's shard.

A forward is prepared, run and finished. All that belongs to one forward alone is in
:class:`ShardForward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.families.claims import claim
from sglang_cdsp.attention.families.latent import Latent
from sglang_cdsp.attention.ring import RingLayout
from sglang_cdsp.engine.coroutines import Ready
from sglang_cdsp.engine.device import Pace, Stopwatch, events_of
from sglang_cdsp.engine.faults import FailingAttention, requested_fault
from sglang_cdsp.engine.forward import ShardInput, build_forward_batch, run_forward
from sglang_cdsp.engine.forward_state import enter_forward_stream
from sglang_cdsp.engine.latent_form import answer_layers
from sglang_cdsp.engine.layers import LayerSteps
from sglang_cdsp.engine.prompt_logprobs import ask_for_rows, collect, rows_asked
from sglang_cdsp.engine.sampling import sample_first_token, sampling_batch
from sglang_cdsp.engine.stock import StockScheduler
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import ChunkLayout
from sglang_cdsp.parallel.gather import Gather, moves_to_home
from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.traffic import Traffic
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.rebalancer import Rebalancer
from sglang_cdsp.parallel.spans import Span, tokens_of
from sglang_cdsp.protocol.messages import GoOrder, LogprobPart, LogprobSpec

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


TILE_FLOPS: tuple[float | None, float | None] = (None, 5e12)
"""Operations of a piece of attention at most: on a CPU no bound, on CUDA some 15 ms.

On a CPU core tiles of 80 ms cost 12 % of a prompt of 8,000 tokens. Layers and ring steps do there,
as long as nobody decodes beside a chunk.
"""

TILE_BESIDE_DECODE = 1.5e9
"""Operations of a tile on a CPU core while requests decode there: some 40 ms."""


@dataclass(frozen=True)
class ShardForward:
    """One forward of the model over this instance's shard of a chunk.

    Attributes:
        inputs: SGLang's input of the forward.
        attention: what the model's layers call meanwhile.
        positions: prompt positions of the shard's tokens, int64 ``[T]``.
        sampling: at home, in the last chunk: SGLang's batch of the request, else None.
        logprob_spec: prompt log-probabilities asked of these rows, None for none.
    """

    inputs: ForwardBatch
    attention: LayerSteps
    positions: torch.Tensor
    sampling: ScheduleBatch | None
    logprob_spec: LogprobSpec | None


@dataclass(frozen=True)
class ShardDone:
    """A shard that was computed.

    Attributes:
        part: prompt log-probabilities of it, None if the request asked for none of its rows.
        start_s: when the device started, monotonic seconds; None where the host computes itself.
    """

    part: LogprobPart | None = None
    start_s: float | None = None


class ShardRunner:
    """One rank's model as far as it runs shards; knows nothing of queues."""

    def __init__(
        self,
        scheduler: StockScheduler,
        hub: LinkHub,
        instance: int,
        give_way: Callable[[Ready | None], None],
        on_layer: Callable[[int], None],
        decodes: Callable[[], bool] = lambda: False,
        ranks: Ranks = ALONE,
    ) -> None:
        """Make ready.

        Args:
            scheduler: SGLang's scheduler of this rank.
            hub: this rank's links to the same rank of the other instances.
            instance: this instance's number.
            give_way: lets others go on, see ``Coroutines.give_way``.
            on_layer: called before each layer of a forward, with the serial of its order.
            decodes: whether requests wait for their next token on this instance.
            ranks: this instance's tensor parallelism.
        """
        self._ranks = ranks
        self._decodes = decodes
        self._scheduler = scheduler
        self._model_runner = scheduler.tp_worker.model_runner
        self._hub = hub
        self._instance = instance
        self._give_way = give_way
        self._on_layer = on_layer
        self._events = events_of(self._model_runner.device)
        self._fault = requested_fault()
        self._families = claim(self._model_runner.model).families
        self.layers = tuple(self._families)
        """The model's attention layers, in order."""
        if any(isinstance(family, Latent) for family in self._families.values()):
            answer_layers()

    def run(self, task: ChunkTask, order: GoOrder, stored: Callable[[int], None]) -> ShardDone:
        """Compute this instance's shard of a chunk and store its KV in the task's slots.

        It gives way at every layer. At home the plan's last chunk leaves the first token in the
        task's request.

        Args:
            task, order: what to compute.
            stored: called with a layer's number when its KV is in the pool, or will be once the
                current stream has run.

        Raises:
            StoppedError: the chunk is not to go on.
            LinkError: a partner is gone.
        """
        group = task.layouts[order.chunk].group
        if len(group) > 1:
            task.lane = self._hub.open(order.lane, order.serial, group)
        enter_forward_stream(self._scheduler, self._model_runner.device)
        watch = Stopwatch(self._events) if self._events is not None else None
        forward = self._prepare(task, order, stored)
        logits = run_forward(self._model_runner, forward.inputs, forward.attention)
        forward.attention.finish()
        # The chunk is over when the device says so, and took as long as the device says.
        start_s = watch.stop(self._give_way) if watch is not None else None
        return ShardDone(self._finish(task, forward, logits), start_s)

    def traffic(self) -> Traffic:
        """What has gone over this rank's links since it was asked last."""
        return self._hub.traffic.taken()

    def _prepare(
        self, task: ChunkTask, order: GoOrder, stored: Callable[[int], None]
    ) -> ShardForward:
        chunk = order.chunk
        layout = task.layouts[chunk]
        sampling = None
        if task.is_final(chunk) and task.answers_at(self._instance):
            assert task.req is not None
            sampling = sampling_batch(self._scheduler, task.req)
        spans = layout.shard(self._instance)
        positions = positions_of(spans)
        shard = ShardInput(task.tokens[positions], positions, task.slot_table.slots(spans))
        inputs = build_forward_batch(shard.padded(), self._model_runner.device, sampling)
        spec = task.logprob_spec if rows_asked(positions, task.logprob_spec) else None
        if spec is not None:
            ask_for_rows(inputs, task.tokens, positions, spec)
        pace = Pace(self._give_way, self._events)
        last = task.gathers and task.is_final(chunk)
        gather = self._gather(task, layout) if last else None
        attention = LayerSteps(
            self._attention(task, chunk, shard.slots, stored, pace, gather),
            pace,
            partial(self._on_layer, order.serial),
            gather,
            task.keep_layers if last and task.home == self._instance else lambda layers: None,
        )
        return ShardForward(inputs, attention, positions, sampling, spec)

    def _finish(self, task: ChunkTask, forward: ShardForward, logits: Any) -> LogprobPart | None:
        if forward.sampling is not None:
            sample_first_token(self._scheduler, forward.sampling, forward.inputs, logits)
        if forward.logprob_spec is None:
            return None
        return collect(
            self._scheduler, logits, forward.positions, forward.logprob_spec, seq=task.seq
        )

    def _attention(
        self,
        task: ChunkTask,
        chunk: int,
        own: torch.Tensor,
        stored: Callable[[int], None],
        pace: Pace,
        gather: Gather | None,
    ) -> ShardAttention:
        layout, slot_table = task.layouts[chunk], task.slot_table
        member = layout.group.index(self._instance)
        attention = ShardAttention(
            inner=self._model_runner.attn_backend,
            layout=RingLayout(
                group=layout.group,
                me=member,
                history_tokens=tuple(tokens_of(held) for held in layout.history),
                pieces=layout.spans,
            ),
            links=task.lane,
            own_slots=own,
            history_slots=slot_table.slots(layout.history[member]),
            rebalancer=self._rebalancer(task, layout),
            give_way=pace,
            tile_flops=self._tile_flops(),
            stored=stored,
            kept_slots=self._kept_slots(task, layout) if gather is not None else None,
            gather=gather,
            history=layout.history,
            families=self._families,
            ranks=self._ranks,
        )
        if self._fault is not None and self._fault.hits(self._instance, task, chunk):
            return FailingAttention(attention)
        return attention

    def _tile_flops(self) -> float | None:
        """Operations of a tile of attention in a forward that begins now."""
        flops = TILE_FLOPS[torch.device(self._model_runner.device).type == "cuda"]
        return TILE_BESIDE_DECODE if flops is None and self._decodes() else flops

    def _gather(self, task: ChunkTask, layout: ChunkLayout) -> Gather | None:
        moves = moves_to_home(layout, task.reused)
        if not any(self._instance in (move.src, move.dst) for move in moves):
            return None
        assert task.lane is not None
        return Gather(
            pool=self._model_runner.token_to_kv_pool,
            moves=moves,
            instance=self._instance,
            slots_of=lambda span: task.slot_table.slots([span]),
            links=task.lane,
            ranks=self._ranks,
        )

    def _kept_slots(self, task: ChunkTask, layout: ChunkLayout) -> list[torch.Tensor] | None:
        """Where home keeps the blocks of all members, by index; None elsewhere."""
        if task.home != self._instance:
            return None
        blocks = zip(layout.history, layout.spans, strict=True)
        return [task.slot_table.slots_to_store([*history, *own]) for history, own in blocks]

    def _rebalancer(self, task: ChunkTask, layout: ChunkLayout) -> Rebalancer | None:
        if not any(self._instance in (move.src, move.dst) for move in layout.moves):
            return None
        assert task.lane is not None
        return Rebalancer(
            pool=self._model_runner.token_to_kv_pool,
            layers=self.layers,
            moves=layout.moves,
            instance=self._instance,
            slots_of=lambda span: task.slot_table.slots([span]),
            links=task.lane,
            ranks=self._ranks,
        )


def positions_of(spans: tuple[Span, ...]) -> torch.Tensor:
    """Prompt positions of the spans in order, int64 ``[tokens]``."""
    if not spans:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])
