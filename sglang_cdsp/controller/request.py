"""A request as the pool controller sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from sglang_cdsp.planner.forced import ForcedPlan
from sglang_cdsp.planner.types import Plan


class Phase(Enum):
    """Where a request stands. It only moves forward."""

    ARRIVED = auto()  # decode's pages are not known yet
    WAITING = auto()  # the policy has it
    BOUND = auto()  # it has a plan and a sequence number
    DRAINING = auto()  # computed or dropped; writes may be in flight
    RELEASING = auto()  # all writes drained; slots are being freed
    ENDED = auto()


@dataclass
class ChunkTimes:
    """When a chunk really ran, in monotonic seconds; None before."""

    start_s: float | None = None
    end_s: float | None = None
    done: set[int] = field(default_factory=set)


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


@dataclass
class PoolRequest:
    """One request's state at the controller.

    Attributes:
        rid: SGLang's request id.
        tokenized: SGLang's tokenized request; None for a probe.
        tokens: prompt length.
        arrival_s: monotonic arrival.
        room: bootstrap room; None when no decode server takes the KV.
        forced: plan demanded by the request, ``(tokens, instances)`` per chunk.
        plan: what the policy decided, times relative to ``bound_s``.
        seq: place in the pool's order of tasks.
        next_chunk: the chunk that is to start or is running.
        running: whether ``next_chunk`` runs.
        ready: per chunk, the instances that can start it.
        drained: ``(instance, tp_rank)`` that write nothing more.
        error: why it failed or was aborted; "" while all is well.
        aborted: it ends because somebody no longer wants it.
        answered: its client has been answered.
    """

    rid: str
    tokenized: Any
    tokens: int
    arrival_s: float
    room: int | None = None
    forced: ForcedPlan | None = None
    phase: Phase = Phase.ARRIVED
    plan: Plan | None = None
    policy: str = ""
    bound_s: float = 0.0
    seq: int = -1
    next_chunk: int = 0
    running: bool = False
    ready: dict[int, set[int]] = field(default_factory=dict)
    times: list[ChunkTimes] = field(default_factory=list)
    drained: set[tuple[int, int]] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    first_token_s: float | None = None
    error: str = ""
    aborted: bool = False
    answered: bool = False
    abort_targets: list[AbortTarget] = field(default_factory=list)

    @property
    def probe(self) -> bool:
        """Whether it is the controller's own measurement."""
        return self.tokenized is None

    @property
    def one_instance(self) -> bool:
        """Whether it takes its instance's stock path.

        A request without a decode server does not: SGLang 0.5.21 never gets past the first chunk
        of such a prompt when it is longer than ``--chunked-prefill-size``.
        """
        plan = self.plan
        return (
            plan is not None
            and self.room is not None
            and len(plan.chunks) == 1
            and plan.chunks[0].sp_size == 1
        )

    @property
    def outcome(self) -> str:
        """``"finished"``, ``"aborted"`` or ``"failed"``."""
        if self.aborted:
            return "aborted"
        return "failed" if self.error else "finished"
