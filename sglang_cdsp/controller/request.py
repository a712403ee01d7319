"""A request as the pool controller sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from sglang_cdsp.controller.phases import Event, Phase, after
from sglang_cdsp.planner.forced import ForcedPlan
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView
from sglang_cdsp.protocol.messages import OutputState


@dataclass
class ChunkTimes:
    """When a chunk really ran, in monotonic seconds; None before.

    Attributes:
        start_s: when the last of the members began with its shard: the others wait for it.
        own_s: the least that a member took, without the time in which it ran something else.
        done: members that have run their shards.
        decode_share: of its members' time that decode was to get meanwhile, see ``GoOrder``.
    """

    start_s: float | None = None
    end_s: float | None = None
    own_s: float | None = None
    done: set[int] = field(default_factory=set)
    decode_share: float = 0.0

    @property
    def passed_s(self) -> float:
        """Seconds between start and end in which members ran something else.

        What each of them ran is no measure: one began before the others, and two of them may have
        run the same thing. What is left of the chunk's time is its computation.
        """
        if self.start_s is None or self.end_s is None or self.own_s is None:
            return 0.0
        return max(self.end_s - self.start_s - self.own_s, 0.0)

    def ran(self, instance: int, start_s: float, end_s: float, passed_s: float) -> None:
        """A member ran its shard between two times; ``passed_s`` of it it ran something else."""
        self.start_s = max(start_s, self.start_s or start_s)
        self.end_s = max(end_s, self.end_s or end_s)
        own_s = end_s - start_s - passed_s
        self.own_s = own_s if self.own_s is None else min(self.own_s, own_s)
        self.done.add(instance)


@dataclass(frozen=True)
class Replan:
    """A change of a plan's rest. Times are monotonic seconds.

    Attributes:
        at_s: when.
        chunk: the first that it concerns.
        reason: what it was good for.
        before, after: the rest by either plan, chunk by chunk.
        due_s: when the last chunk was expected to end, by either plan.
    """

    at_s: float
    chunk: int
    reason: str
    before: tuple[PlannedChunk, ...]
    after: tuple[PlannedChunk, ...]
    due_s: tuple[float, float]

    def to_dict(self, arrival_s: float) -> dict[str, Any]:
        """In JSON types; times from the request's arrival."""

        def rest(chunks: tuple[PlannedChunk, ...], due_s: float) -> dict[str, Any]:
            placed = [[chunk.tokens, list(chunk.instances)] for chunk in chunks]
            return {"chunks": placed, "ttft_s": due_s - arrival_s}

        return {
            "at_s": self.at_s - arrival_s,
            "chunk": self.chunk,
            "reason": self.reason,
            "from": rest(self.before, self.due_s[0]),
            "to": rest(self.after, self.due_s[1]),
        }


@dataclass(frozen=True)
class MoveTimes:
    """A request's way from one home to another. Times are monotonic seconds.

    Attributes:
        source, target: the instances.
        asked_s: when the target was asked to get ready.
        left_s: when the source took it out of its batch.
        arrived_s: when the target went on with it.
        rows: of its KV when it left.
        ahead: of these, those that were to go ahead, while it was computed or decoded on.
        cached: of these, the first ones, which the target had cached and which did not travel.
    """

    source: int
    target: int
    asked_s: float
    left_s: float
    arrived_s: float
    rows: int
    ahead: int = 0
    cached: int = 0

    def to_dict(self, arrival_s: float) -> dict[str, Any]:
        """In JSON types; times from the request's arrival."""
        return {
            "from": self.source,
            "to": self.target,
            "tokens": self.rows,
            "ahead": self.ahead,
            "cached": self.cached,
            "asked_s": self.asked_s - arrival_s,
            "left_s": self.left_s - arrival_s,
            "arrived_s": self.arrived_s - arrival_s,
        }


@dataclass
class Output:
    """What a client has seen of a request that its home decodes.

    Attributes:
        tokens: output token ids.
        cached_tokens, retractions: what it was told last, as in ``OutputState``.
        complete: it has its whole answer.
    """

    tokens: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    retractions: int = 0
    complete: bool = False


@dataclass
class AbortTarget:
    """A decode rank that waits to hear that nobody writes to its pages any more.

    Attributes:
        tp_rank: the prefill rank that it asked.
        host, port: where it listens.
        generation: decode's number of this abort, which the acknowledgement repeats; None where
            aborts have none.
    """

    tp_rank: int
    host: str
    port: int
    generation: int | None = None


@dataclass(eq=False)
class PoolRequest:
    """One request's state at the controller.

    Attributes:
        rid: SGLang's request id.
        tokenized: SGLang's tokenized request; None for a probe.
        tokens: prompt length.
        arrival_s: monotonic arrival.
        urgency: place among those that wait, larger is sooner; see ``QueueLimits.urgency``.
        room: bootstrap room; None when no decode server takes the KV.
        forced: plan demanded by the request.
        plan: what the policy decided, times relative to ``bound_s``; what ran of it included.
        found: the pool as the plan found it, None for a probe and before.
        revision: how often its rest was planned anew; orders and reports carry it.
        replans: those changes.
        left: instances that its plan lost, and the last revision that lost them.
        without: instances that its rest must do without.
        seq: place in the pool's order of tasks.
        one_instance: whether it takes its instance's stock path.
        next_chunk: the chunk that is to start or is running.
        lane, serial: of the chunk that was started last, see ``GoOrder``.
        ready: per chunk, the instances that can start it, by the plan in force.
        times: per chunk, when it ran.
        drained: ``(instance, tp_rank)`` that write nothing more.
        drained_s: when the last of them had ended its writes, monotonic, None before the first.
        released: instances that freed its slots.
        first_token_s: when its first token was sampled, None before.
        error: why it failed or was aborted; "" while all is well.
        uncertain: a write of its KV failed, and parts of it may still arrive at decode.
        status: the HTTP status of its end, as its client is told.
        aborted: it ends because somebody no longer wants it.
        cause: whose doing its end is, where its status does not tell; see ``cause_of``.
        answered: its client has been answered.
        abort_targets: decode ranks that gave it up and wait to hear that its pages are safe.
        forwarded: those of them that its one instance was to tell.
        lost: instances of its plan that were given up with what they had of it.
        recalled: its plan is being ended, and it is to get another one.
        recalls: how often that has happened.
        losses: how often its home was lost, or another instance that it needed.
        decodes: its home decodes it, there is no decode server.
        output_tokens: KV slots that home promises for its output, where it decodes.
        joins_late: home decodes it only when all members have its prompt's log-probabilities.
        joined: home's own scheduler has it.
        decoded: home's own scheduler is done with it.
        last_token_s: when its home was done with it, monotonic; None before.
        moved_to: its home now, where that is not the one of its plan.
        moves: how it came there.
        travels: it has left its home, and is on its way to the next or back: nobody decodes it.
        stays: it has a state that cannot be moved.
        not_moved_before_s: a move of it failed; monotonic.
        longest_output: the most tokens that it may generate, None for as many as fit.
        output: what its client has seen of it.
        carried: what it was when it left a home, until its client has seen more of it.
        resumes: what its present plan goes on from, None from its prompt alone.
        missed: a cached prefix of its plan was not there: it is computed without any.
        copy: the copy by which its home gets the prefix that its plan starts from, None for none.
        uncopied: such a copy could not begin: its next plan starts from what is there.
        keeps: before a decode server, its home ends with all of its prompt's KV, for its cache.
        prompt_tokens: length of its prompt; ``tokens`` counts what is gone on from, too.
    """

    rid: str
    tokenized: Any
    tokens: int
    arrival_s: float
    room: int | None = None
    urgency: int = 0
    forced: ForcedPlan | None = None
    plan: Plan | None = None
    found: PoolView | None = None
    revision: int = 0
    replans: list[Replan] = field(default_factory=list)
    left: dict[int, int] = field(default_factory=dict)
    without: set[int] = field(default_factory=set)
    policy: str = ""
    bound_s: float = 0.0
    seq: int = -1
    one_instance: bool = False
    next_chunk: int = 0
    lane: int = 0
    serial: int = 0
    ready: dict[int, set[int]] = field(default_factory=dict)
    times: list[ChunkTimes] = field(default_factory=list)
    drained: set[tuple[int, int]] = field(default_factory=set)
    drained_s: float | None = None
    released: set[int] = field(default_factory=set)
    first_token_s: float | None = None
    error: str = ""
    uncertain: bool = False
    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    aborted: bool = False
    cause: str = ""
    answered: bool = False
    abort_targets: list[AbortTarget] = field(default_factory=list)
    forwarded: list[AbortTarget] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    recalled: bool = False
    recalls: int = 0
    decodes: bool = False
    output_tokens: int = 0
    joins_late: bool = False
    joined: bool = False
    decoded: bool = False
    last_token_s: float | None = None
    moved_to: int | None = None
    moves: list[MoveTimes] = field(default_factory=list)
    travels: bool = False
    stays: bool = False
    not_moved_before_s: float = 0.0
    losses: int = 0
    longest_output: int | None = None
    output: Output = field(default_factory=Output)
    carried: OutputState | None = None
    resumes: OutputState | None = None
    missed: bool = False
    copy: int | None = None
    uncopied: bool = False
    keeps: bool = False
    prompt_tokens: int = field(init=False)
    _phase: Phase = field(default=Phase.ARRIVED, init=False)

    def __post_init__(self) -> None:
        self.prompt_tokens = self.tokens

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self._phase

    def advance(self, event: Event) -> Phase:
        """Something happens to it; returns the phase that it was in.

        Raises:
            IllegalEventError: that cannot happen in its phase, which stays as it was.
        """
        before, self._phase = self._phase, after(self._phase, event, self.rid)
        return before

    @property
    def reachable(self) -> tuple[int, ...]:
        """The instances that have something of it and can be told anything."""
        assert self.plan is not None
        decoding = self._phase is Phase.DECODING
        having = (self.home,) if decoding else self.plan.instances
        if self.travels:
            return ()  # whoever has it in the end is told
        return tuple(instance for instance in having if instance not in self.lost)

    def needs_no_more_of(self, instance: int) -> bool:
        """Whether home, which is another instance, holds all of its KV and decodes it."""
        if not self.decodes or self.joins_late or self.plan is None or instance == self.plan.home:
            return False
        last = len(self.plan.chunks) - 1
        return self.next_chunk >= last and self.plan.home in self.times[last].done

    @property
    def home(self) -> int:
        """Where all of its KV is, or is to be, and where it is decoded."""
        assert self.plan is not None
        return self.plan.home if self.moved_to is None else self.moved_to

    @property
    def probe(self) -> bool:
        """Whether it is the controller's own measurement."""
        return self.tokenized is None

    def fits_stock(self, most_tokens: int) -> bool:
        """Whether it may take its instance's stock path, where a whole forward blocks the loop.

        On a prefill server a request without a decode server may not: SGLang 0.5.21 never gets past
        the first chunk of such a prompt when it is longer than ``--chunked-prefill-size``.
        What goes on from earlier output may not either: SGLang's prefill starts penalties anew.
        """
        plan = self.plan
        return (
            plan is not None
            and (self.room is not None or self.decodes)
            and len(plan.chunks) == 1
            and plan.chunks[0].sp_size == 1
            and self.tokens <= most_tokens
            and self.resumes is None
            and plan.copy is None  # SGLang's own queue would not wait for it
        )

    def forget_plan(self) -> None:
        """Nothing is left of its plan on any instance; it is as it was before it had one."""
        self.plan, self.policy, self.bound_s, self.seq = None, "", 0.0, -1
        self.found = None
        self.one_instance = False
        self.next_chunk = self.lane = self.serial = 0
        self.ready, self.times = {}, []
        self.drained, self.drained_s, self.released = set(), None, set()
        self.lost, self.without = set(), set()
        self.recalled = self.joined = self.keeps = False
        self.moved_to = self.copy = None
        self.recalls += 1

    @property
    def outcome(self) -> str:
        """``"finished"``, ``"aborted"`` or ``"failed"``."""
        if self.aborted:
            return "aborted"
        return "failed" if self.error else "finished"
