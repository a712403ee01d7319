"""The planner's plain data: prompts, the pool as seen, and plans. Everything is frozen.

Times are seconds relative to the planning moment unless a name says otherwise; lengths are
tokens; instances are numbered 0..n-1 and node k holds instances [k * instances_per_node, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_cdsp.planner.errors import PoolViewError

Group = tuple[int, ...]
"""Ordered instances; a later chunk's group starts with the earlier one's."""

Placement = tuple[tuple[int, Group], ...]
"""A plan without times: (tokens, group) per chunk."""


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """One chunk: `tokens` prompt tokens on the ordered SP group `instances`."""

    tokens: int
    instances: tuple[int, ...]
    start_s: float
    end_s: float

    @property
    def sp_size(self) -> int:
        """Instances of its group."""
        return len(self.instances)

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "tokens": self.tokens,
            "sp_size": self.sp_size,
            "instances": list(self.instances),
            "start_s": self.start_s,
            "end_s": self.end_s,
        }


@dataclass(frozen=True, slots=True)
class Considered:
    """A candidate that a policy weighed, and why it won or lost.

    `instance_seconds` is what the plan takes from the pool: over the last group, the time from
    when each instance would have been free until the plan's end (a member is
    busy until the request ends). `reused` is as in `Plan`.
    """

    chunks: tuple[PlannedChunk, ...]
    ttft_s: float
    instance_seconds: float
    chosen: bool
    reason: str
    reused: int = 0

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "chunks": [chunk.to_dict() for chunk in self.chunks],
            "ttft_s": self.ttft_s if math.isfinite(self.ttft_s) else None,
            "instance_seconds": self.instance_seconds,
            "chosen": self.chosen,
            "reason": self.reason,
            "reused": self.reused,
        }


@dataclass(frozen=True, slots=True)
class PrefixCopy:
    """A cached prefix that is copied to a plan's home before its first chunk.

    source: the instance that has it. tokens: those that travel, which home lacks. seconds: what
    that takes; the first chunk starts no sooner.
    """

    source: int
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {"from": self.source, "tokens": self.tokens, "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Plan:
    """The chunks of one request, in order; each group starts with the group before it.

    `single_chunk_ttft_s` is the TTFT of Algorithm 2's plan at the same state (None for policies
    that do not compute it); `considered` is filled only when an explanation was asked for.
    `passes`: its one chunk runs between the layers of what runs on its group (`Passable`), which
    goes on afterwards; it stands in no queue. `replanned`: why this is not the plan that the
    prompt was bound with, "" if it is. `reused`: cached tokens in front of its first chunk, which
    its home has; they are not computed. `cached`: the most tokens that any instance had cached of
    the prompt, as far as it might be reused. `choice`: why it starts from those or not, "" where
    there was nothing to choose. `copy`: how home gets those that it reuses, None if it has them.
    """

    chunks: tuple[PlannedChunk, ...]
    ttft_s: float
    policy: str
    single_chunk_ttft_s: float | None = None
    considered: tuple[Considered, ...] = ()
    passes: bool = False
    replanned: str = ""
    reused: int = 0
    cached: int = 0
    choice: str = ""
    copy: PrefixCopy | None = None

    @property
    def instances(self) -> tuple[int, ...]:
        """Every instance that takes part: the last group, which contains all earlier ones."""
        return self.chunks[-1].instances

    @property
    def home(self) -> int:
        """The instance that samples the first token: first of the first group."""
        return self.chunks[0].instances[0]

    @property
    def placement(self) -> Placement:
        """The plan without its times."""
        return tuple((chunk.tokens, chunk.instances) for chunk in self.chunks)

    def before(self, chunk: int) -> Placement:
        """What lies in front of its chunk number `chunk`: the cached prefix, then other chunks."""
        cached = ((self.reused, (self.home,)),) if self.reused else ()
        return cached + tuple((c.tokens, c.instances) for c in self.chunks[:chunk])

    @property
    def tokens(self) -> int:
        """Tokens that it prefills."""
        return sum(chunk.tokens for chunk in self.chunks)

    @property
    def seconds(self) -> float:
        """Its own time: what its chunks take, without the time that it waits for instances."""
        return sum(chunk.end_s - chunk.start_s for chunk in self.chunks)

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "policy": self.policy,
            "ttft_s": self.ttft_s,
            "single_chunk_ttft_s": self.single_chunk_ttft_s,
            "passes": self.passes,
            "replanned": self.replanned,
            "reused": self.reused,
            "cached": self.cached,
            "choice": self.choice,
            "copy": self.copy.to_dict() if self.copy else None,
            "chunks": [chunk.to_dict() for chunk in self.chunks],
            "considered": [candidate.to_dict() for candidate in self.considered],
        }


@dataclass(frozen=True, slots=True)
class PromptView:
    """A prompt to plan: its uncached tokens, and where its history (cached or computed) lies.

    `history_tokens` is a multiple of the page size and lies evenly on `history_instances`, whose
    order becomes the start of the first group. Planning the rest of a request at a chunk boundary
    is the same call: `tokens` = what is left, history = what is placed.
    `priority`: larger is more urgent; it goes before arrival among the prompts that wait.
    """

    rid: str
    tokens: int
    history_tokens: int = 0
    history_instances: tuple[int, ...] = ()
    arrival_s: float = 0.0
    priority: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise PoolViewError(
                f"prompt {self.rid}: tokens is {self.tokens}; plan at least one uncached token"
            )
        if self.history_tokens < 0 or (self.history_tokens > 0) != bool(self.history_instances):
            raise PoolViewError(
                f"prompt {self.rid}: history_tokens {self.history_tokens} and history_instances "
                f"{self.history_instances} disagree; give both or neither"
            )
        if len(set(self.history_instances)) != len(self.history_instances):
            raise PoolViewError(f"prompt {self.rid}: history_instances repeats an instance")


@dataclass(frozen=True, slots=True)
class HeldPrefix:
    """An instance that has the first `tokens` tokens of a prompt cached, in whole pages.

    At least one token of the prompt is left to compute. `home_tokens`: KV slots that the instance
    needs of the prompt in the end, cached ones included, if that decodes there; 0 if it does not.
    `ready`: tokens, of these, that it can send to another instance now; None for all of them.
    """

    instance: int
    tokens: int
    home_tokens: int = 0
    ready: int | None = None

    @property
    def sendable(self) -> int:
        """Tokens that it can send to another instance now."""
        return self.tokens if self.ready is None else self.ready


PrefixSource = Callable[[str], tuple[HeldPrefix, ...]]
"""Who has what of a prompt that waits, by request id, as it is now; the longest first."""


@dataclass(frozen=True, slots=True)
class Passable:
    """A running chunk between whose layers other prompts may run: a plan with `passes`.

    While one member serves a prompt that passes, the whole group stands still. It stands still
    from its next layer boundary (`boundary_s`; 0 if it does already) until the last of those that
    pass it have ended (`resume_s`; equal to `boundary_s` if nobody passes). Times are seconds
    from the planning moment.

    Attributes:
        instances: the chunk's SP group.
        own_s: what the chunk's prompt takes in all when nobody passes it (`Plan.seconds`).
        waited_s: how long ago the chunk's prompt arrived.
        left_s: what the chunk still has to compute.
        budget_s: by how much more the prompt, or one bound behind it, may be delayed.
        taken_s: per member, until when it serves prompts that pass; 0 = it serves nobody. A
            member with less than `resume_s` has room that delays nobody.
    """

    instances: Group
    own_s: float
    waited_s: float
    left_s: float
    boundary_s: float
    resume_s: float
    budget_s: float
    taken_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """What decodes on an instance.

    requests: how many. tokens_left: what each of them has to come, on average. pace: the fraction
    of the instance's time that a chunk gets beside them. stretch_s: by how much a chunk puts off
    each of their tokens, seconds.
    """

    requests: int = 0
    tokens_left: float = 0.0
    pace: float = 1.0
    stretch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolView:
    """The pool at the planning moment, one entry per instance in each tuple but `passable`.

    queue_s: remaining work (running and bound) in seconds, >= 0.
    free_tokens: KV slots neither held nor promised to a plan already bound; None = no limit.
    up: False for an instance that is down (it is never planned on); None = all up.
    capacity_tokens: KV slots of the empty instance, for `Policy.check`; None = no limit.
    passable: what a prompt may pass; groups are disjoint. Empty where chunks do not give way.
    running: what decodes on each instance; empty where nothing does.
    """

    queue_s: tuple[float, ...]
    free_tokens: tuple[int, ...] | None
    instances_per_node: int
    up: tuple[bool, ...] | None = None
    capacity_tokens: tuple[int, ...] | None = None
    passable: tuple[Passable, ...] = ()
    running: tuple[Running, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.queue_s)
        if n == 0:
            raise PoolViewError("the pool has no instances; give one queue time per instance")
        for name in ("free_tokens", "up", "capacity_tokens"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise PoolViewError(
                    f"{name} has {len(values)} entries for {n} instances; give one per instance"
                )
        if self.running and len(self.running) != n:
            raise PoolViewError(
                f"running has {len(self.running)} entries for {n} instances; give one per instance"
            )
        if self.instances_per_node < 1:
            raise PoolViewError(
                f"instances_per_node is {self.instances_per_node}; it must be at least 1"
            )
        if not 0.0 <= min(self.queue_s) <= max(self.queue_s) < math.inf:
            raise PoolViewError(
                "queue_s must be finite and >= 0; mark an unusable instance with up=False"
            )

    @property
    def size(self) -> int:
        """Instances, up or down."""
        return len(self.queue_s)
