"""From a chunk's layout to a forward of the model on this instance's shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention, check_layer
from sglang_cdsp.attention.lockstep import LockstepAttention
from sglang_cdsp.attention.ring import RingLayout
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.faults import FailingAttention, requested_fault
from sglang_cdsp.engine.forward import ShardInput, build_forward_batch, run_forward
from sglang_cdsp.engine.prompt_logprobs import apply_spec, collect, spec_rows
from sglang_cdsp.engine.sampling import sample_first_token, sampling_batch
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import ChunkLayout
from sglang_cdsp.parallel.mesh import Mesh
from sglang_cdsp.parallel.rebalancer import Rebalancer
from sglang_cdsp.parallel.spans import Span, tokens_of
from sglang_cdsp.protocol.messages import LogprobPart


class ChunkFailedError(RuntimeError):
    """A chunk's forward failed on a rank of this instance."""


class ShardRunner:
    """Runs shards on one rank's model; knows nothing of queues."""

    def __init__(
        self, scheduler: Any, connect: Callable[[int], Mesh], me: int, agreement: Agreement
    ) -> None:
        """Link up with the other instances.

        Args:
            scheduler: SGLang's scheduler of this rank.
            connect: makes the links of an epoch, together with every other instance.
            me: this instance's number, which is also its rank in the mesh.
            agreement: among the ranks of this instance.

        Raises:
            UnsupportedLayer: the model has attention that chunk tasks cannot run.
        """
        self._scheduler = scheduler
        self._runner = scheduler.tp_worker.model_runner
        self._connect = connect
        self._me = me
        self._agreement = agreement
        self._fault = requested_fault()
        modules = [m for m in self._runner.model.modules() if isinstance(m, RadixAttention)]
        for module in modules:
            check_layer(module, {})
        self._layers = sorted(module.layer_id for module in modules)
        self._mesh = connect(0)

    def close_links(self) -> None:
        """Break all links of this instance: partners that wait for it get an error."""
        self._mesh.close()

    def relink(self, epoch: int) -> None:
        """Make new links, together with every other instance."""
        self._mesh.close()
        self._mesh = self._connect(epoch)

    def run(self, task: ChunkTask, chunk: int, failure: str = "") -> LogprobPart | None:
        """Compute this instance's shard of a chunk and store its KV in the task's slots.

        At home the plan's last chunk leaves the first token in the task's request.

        Args:
            task, chunk: what to compute.
            failure: what is wrong on this rank before it starts, if anything; its partners
                may not know.

        Returns:
            Prompt log-probabilities of the shard, if the request asked for any of its rows.

        Raises:
            ChunkFailedError: on every rank of the instance, when one of them failed.
        """
        layout = task.layouts[chunk]
        samples = task.is_final(chunk) and task.home == self._me and not task.probe
        batch = None
        if samples:
            assert task.req is not None
            batch = sampling_batch(self._scheduler, task.req)
        spans = layout.shard(self._me)
        rows = positions_of(spans)
        shard = ShardInput(task.tokens[rows], rows, task.slot_table.slots(spans))
        forward = build_forward_batch(shard.padded(), self._runner.device, batch)
        spec = task.spec if spec_rows(rows, task.spec) else None
        if spec is not None:
            apply_spec(forward, task.tokens, rows, spec)
        # Partners may wait for this instance inside the chunk: a closed link tells them.
        warn = self.close_links if len(layout.group) > 1 else lambda: None
        lockstep = LockstepAttention(self._attention(task, chunk, shard.slots), warn, failure)
        logits = run_forward(self._runner, forward, lockstep)
        error = self._agreement.reach(lockstep.failure)
        if error:
            raise ChunkFailedError(error)
        if batch is not None:
            sample_first_token(self._scheduler, batch, forward, logits)
        if spec is None:
            return None
        return collect(self._scheduler, logits, rows, spec, seq=task.seq)

    def _attention(self, task: ChunkTask, chunk: int, own: torch.Tensor) -> ShardAttention:
        layout, slot_table = task.layouts[chunk], task.slot_table
        member = layout.group.index(self._me)
        attention = ShardAttention(
            inner=self._runner.attn_backend,
            layout=RingLayout(
                group=layout.group,
                me=member,
                history_tokens=tuple(tokens_of(held) for held in layout.history),
                pieces=layout.spans,
            ),
            mesh=self._mesh if len(layout.group) > 1 else None,
            own_slots=own,
            history_slots=slot_table.slots(layout.history[member]),
            rebalancer=self._rebalancer(layout, slot_table),
        )
        if self._fault is not None and self._fault.hits(self._me, task, chunk):
            return FailingAttention(attention)
        return attention

    def _rebalancer(self, layout: ChunkLayout, slot_table: SlotTable) -> Rebalancer | None:
        mine = [move for move in layout.moves if self._me in (move.src, move.dst)]
        if not mine:
            return None
        return Rebalancer(
            pool=self._runner.token_to_kv_pool,
            layers=self._layers,
            moves=layout.moves,
            me=self._me,
            slots_of=lambda span: slot_table.slots([span]),
            mesh=self._mesh,
        )


def positions_of(spans: tuple[Span, ...]) -> torch.Tensor:
    """Prompt positions of the spans in order, int64 ``[tokens]``."""
    if not spans:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])
