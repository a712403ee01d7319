"""The rest of a prompt between two of its chunks: what is planned anew, and what it may take.

The controller and the simulator put the same question to a policy (`Policy.replan`), so both build
it here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from sglang_cdsp.planner.memory import held_after, history_share, kv_demand
from sglang_cdsp.planner.types import Group, Placement, Plan, PlannedChunk, PoolView, PromptView


@dataclass(frozen=True, slots=True)
class Rest:
    """What `Policy.replan` is asked: see there."""

    prompt: PromptView
    current: Plan
    pool: PoolView


@dataclass(frozen=True, slots=True)
class Placed:
    """What ran of a prompt: so many tokens, held by this group; nothing has run on no group.

    `slots`: KV slots that each member counts as holding, the larger of what it can hold at most
    and the even share with which the planner reckons.
    """

    tokens: int
    group: Group
    slots: int

    @classmethod
    def after(cls, ran: Placement, page_size: int) -> Placed:
        """After these chunks, the first ones of a plan."""
        if not ran:
            return cls(0, (), 0)
        tokens, group = sum(length for length, _ in ran), ran[-1][1]
        share = history_share(tokens, len(group), page_size)
        return cls(tokens, group, max(held_after(ran, page_size), share))

    def with_rest(self, rest: Placement, page_size: int) -> dict[int, int]:
        """KV slots that a request needs on each instance of a plan for its rest, held ones too."""
        slots = kv_demand(rest, page_size, self.tokens, self.group)
        return {i: need + (self.slots if i in self.group else 0) for i, need in slots.items()}


def seen_by_rest(
    seen: PoolView,
    placed: Placed,
    promised: Mapping[int, int],
    before_s: Callable[[int], float],
    may_join: Callable[[int], bool],
) -> PoolView:
    """The pool as if the plan in force for a rest were not bound.

    On its own instances the rest keeps its place in the order, so only what stands before it
    counts. It may join others only where nothing waits that was bound later: the two could wait
    for each other. It stays where its history is, whether anything else is planned there or not.

    Args:
        seen: the pool with that plan.
        placed: what ran of the prompt.
        promised: its KV slots by instance of that plan.
        before_s: how long an instance of that plan is busy with what stands before it, seconds.
        may_join: whether another instance has nothing that was bound later.
    """
    queue, free = list(seen.queue_s), list(seen.free_tokens or ())
    for i, slots in promised.items():
        queue[i] = max(0.0, before_s(i))
        free[i] += slots
    for i in placed.group:
        free[i] -= placed.slots
    everywhere = seen.up or (True,) * seen.size
    up = tuple(
        i in placed.group or (ok and (i in promised or may_join(i)))
        for i, ok in enumerate(everywhere)
    )
    return replace(seen, queue_s=tuple(queue), free_tokens=tuple(free), up=up)


def moved(chunks: Collection[PlannedChunk], seconds: float) -> tuple[PlannedChunk, ...]:
    """The chunks, so much later."""
    return tuple(
        replace(chunk, start_s=chunk.start_s + seconds, end_s=chunk.end_s + seconds)
        for chunk in chunks
    )
