"""What an instance keeps for each task and each one-instance request in its queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sglang_cdsp.engine.coroutines import Coroutine
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.parallel.chunk_layout import ChunkLayout
from sglang_cdsp.parallel.gather import moves_to_home
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import LogprobPart, LogprobSpec, OutputState

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req

    from sglang_cdsp.parallel.links.lanes import Lane
    from sglang_cdsp.transfer.chunk_write import ChunkWrite


@dataclass(eq=False)
class StockRequest:
    """A one-instance request: it waits for its place in the stock queue, then stock has it.

    Attributes:
        seq, rid, passes: as in ``StockOrder``.
        tokenized: the request as SGLang's tokenizer sent it, None until it arrives.
        req: SGLang's object, None until SGLang made it.
        arrival_s: as in ``StockOrder``.
        start_s, end_s: start of its first batch, and its first token; monotonic seconds.
        joined: chunk tasks have computed it, and SGLang decodes it.
        awaited_until_s: how long others stand still for its next step, monotonic seconds.
    """

    seq: int
    rid: str
    arrival_s: float = 0.0
    tokenized: TokenizedGenerateReqInput | None = None
    passes: bool = False
    req: Req | None = None
    start_s: float | None = None
    end_s: float | None = None
    joined: bool = False
    awaited_until_s: float = 0.0


@dataclass
class Short:
    """A task's slots were not there; nothing is looked for again while nothing has changed.

    Attributes:
        free: KV slots that were free then, and those that could have been evicted.
        turns: how often it was not looked for since.
    """

    free: tuple[int, int]
    turns: int = 0


@dataclass(eq=False)
class ChunkTask:
    """A plan on one of its instances.

    Attributes:
        seq, rid, room, probe, arrival_s: as in ``PlanOrder``.
        layouts: the whole plan, resolved.
        revision: of that plan, as in ``PlanOrder``.
        tokens: the prompt, int64 ``[L]``.
        slot_table: KV slots held here.
        next_chunk: the next chunk that this instance takes part in.
        prepared: the chunk whose slots are allocated, None before.
        announced: whether ``Ready`` was reported for ``next_chunk``.
        started: whether any of its chunks was ordered to start here.
        req: SGLang's request, at home only.
        writes: KV writes in flight, by chunk.
        over: all its chunks ran or it was dropped; only writes are left.
        drained: ``Drained`` was reported.
        error: why the task cannot go on here, "" while it can; alike on all ranks.
        lost: what became of a KV write of this rank that failed, "" while all go well.
        uncertain: parts of such a write may still arrive at decode.
        logprob_spec: prompt log-probabilities to compute, None for none.
        logprob_parts: at home, the parts that all members computed.
        urgency, passes: as in ``PlanOrder``.
        running: the coroutine of its chunk, None between chunks.
        lane: its chunk's links, None for a group of one.
        decode_share: as in ``GoOrder``, of the chunk that was started last.
        output: what its request goes on from, None from its prompt alone; at home only.
        gathers: home ends with all of its KV.
        joins: home decodes it.
        joined: at home, its request is SGLang's and owns its KV slots.
        withdrawn: at home, its request is computed anew, and owns nothing here.
        reused: tokens in front of the first chunk that home has cached.
        copy: as in ``PlanOrder``.
        short: at home, what was free when its slots were not there; see ``ChunkWork.announce``.
        matched: at home, they were looked for in the cache.
        awaited_until_s: how long others stand still for the controller's next order, monotonic
            seconds.
        kept_layers: at home, of how many layers the whole prompt's KV is there, in the last chunk.
    """

    seq: int
    rid: str
    room: int | None
    probe: bool
    layouts: tuple[ChunkLayout, ...]
    tokens: torch.Tensor
    slot_table: SlotTable
    next_chunk: int
    revision: int = 0
    arrival_s: float = 0.0
    prepared: int | None = None
    announced: bool = False
    started: bool = False
    req: Req | None = None
    writes: list[tuple[int, ChunkWrite]] = field(default_factory=list)
    over: bool = False
    drained: bool = False
    error: str = ""
    lost: str = ""
    uncertain: bool = False
    logprob_spec: LogprobSpec | None = None
    logprob_parts: list[LogprobPart] = field(default_factory=list)
    urgency: float = 0.0
    passes: bool = False
    running: Coroutine | None = None
    lane: Lane | None = None
    decode_share: float = 0.0
    gathers: bool = False
    joins: bool = False
    joined: bool = False
    output: OutputState | None = None
    withdrawn: bool = False
    reused: int = 0
    copy: int | None = None
    short: Short | None = None
    matched: bool = False
    awaited_until_s: float = 0.0
    kept_layers: int = 0

    def keep_layers(self, layers: int) -> None:
        """So many layers have the whole prompt's KV at home."""
        self.kept_layers = layers

    def has_whole(self, layer: int) -> bool:
        """Whether home has the whole prompt's KV of the n-th of the model's layers.

        Raises:
            RuntimeError: the task ended before that, and it never will.
        """
        if self.computed or self.kept_layers > layer:
            return True
        if self.over or self.error:
            raise RuntimeError(self.error or "its last chunk was ended")
        return False

    @property
    def takes_last(self) -> bool:
        """Whether its last chunk was ordered to start here and has all its slots."""
        return self.running is not None and self.prepared == len(self.layouts) - 1

    @property
    def computed(self) -> bool:
        """Whether its last chunk has run here."""
        return self.next_chunk == len(self.layouts)

    @property
    def waits(self) -> bool:
        """Whether none of its chunks has started here yet."""
        return not (self.started or self.over)

    @property
    def home(self) -> int:
        """The instance that samples."""
        return self.layouts[0].group[0]

    def _spans(self, chunk: int, instance: int) -> list[Span]:
        """What a member has slots for before a chunk: KV that comes to it, and its shard."""
        layout = self.layouts[chunk]
        moves = layout.moves
        if self.gathers and self.is_final(chunk):
            moves += moves_to_home(layout, self.reused)
        incoming = [move.span for move in moves if move.dst == instance]
        return [*incoming, *layout.shard(instance)]

    def slots_to_take(self, instance: int) -> int:
        """KV slots that ``instance`` needs for the next chunk, in whole pages."""
        return self.slot_table.needed(self._spans(self.next_chunk, instance))

    def take_slots(self, instance: int) -> None:
        """Allocate ``instance``'s slots of the next chunk, ``slots_to_take``, before it starts.

        Raises:
            OutOfSlots: the pool is short; what was allocated stays so.
        """
        self.slot_table.take(self._spans(self.next_chunk, instance))
        self.prepared = self.next_chunk

    def take_rest(
        self, layouts: tuple[ChunkLayout, ...], chunk: int, revision: int, instance: int
    ) -> None:
        """Another plan for what follows the chunks that ran, of which ``instance`` is a member.

        What was allocated for the next chunk is freed, once: nothing was stored there.

        Args:
            layouts: the whole plan; what ran is as it was.
            chunk: the next to start.
            revision: of the plan.
            instance: this one.
        """
        if self.prepared is not None and self.prepared == self.next_chunk:
            self.slot_table.drop(self._spans(self.prepared, instance))
        self.prepared, self.announced = None, False
        self.layouts, self.revision = layouts, revision
        self.next_chunk = max(chunk, next(c.index for c in layouts if instance in c.group))

    def starts_from_cache(self, instance: int) -> bool:
        """Whether ``instance`` is to find the plan's prefix in its cache before its first chunk."""
        return bool(self.reused) and not self.matched and self.answers_at(instance)

    def brings(self, other: ChunkTask) -> bool:
        """Whether the prefix that ``other`` starts from is computed, and still on its way from here
        into the cache."""
        if not self.over or self.error or self.joins or self.probe:
            return False
        tokens = other.tokens[: other.reused]
        return self.computed and torch.equal(self.tokens[: other.reused], tokens)

    def is_final(self, chunk: int) -> bool:
        """Whether ``chunk`` is the plan's last."""
        return chunk == len(self.layouts) - 1

    def answers_at(self, instance: int) -> bool:
        """Whether ``instance`` samples and answers: it is home, and this is no probe."""
        return self.home == instance and not self.probe
