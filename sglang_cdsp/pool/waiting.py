"""Requests that decode waits for and that have no plan yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang_cdsp.planner.types import Plan, PromptView
from sglang_cdsp.pool.entry import Entry
from sglang_cdsp.pool.forced import fits, timed_plan
from sglang_cdsp.pool.planning import Planning
from sglang_cdsp.pool.seats import Seats


class Waiting:
    """Requests that bring their plans, first come first served, and those the policy plans."""

    def __init__(self, planning: Planning, seats: Seats, clock: Callable[[], float]) -> None:
        """``clock`` gives monotonic seconds."""
        self._planning = planning
        self._policy = planning.policy
        self._seats = seats
        self._clock = clock
        self._forced: list[Entry] = []
        self._planned: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        """A request waits from now on."""
        if entry.forced is not None:
            self._forced.append(entry)
            return
        self._planned[entry.rid] = entry
        view = PromptView(entry.rid, entry.tokens, arrival_s=entry.arrival_s)
        self._policy.arrive(view, self._clock())

    def starts(self) -> Iterator[tuple[Entry, Plan]]:
        """What starts now, forced plans first; each must be bound before the next is asked for."""
        while self._forced:
            forced = self._forced[0].forced
            assert forced is not None
            if not fits(forced, self._seats.free_tokens(), self._seats.page_size):
                break
            plan = timed_plan(forced, self._planning.model, self._seats.view(self._clock()))
            yield self._forced.pop(0), plan
        if self._policy.waiting():
            now_s = self._clock()
            for rid, plan in self._policy.step(self._seats.view(now_s), now_s):
                yield self._planned.pop(rid), plan

    def to_plan(self) -> tuple[Entry, ...]:
        """Requests whose plan is the policy's to make, in the order of its choice."""
        return tuple(self._planned[rid] for rid in self._policy.waiting())

    def leave(self, entry: Entry) -> None:
        """A request ends without a plan."""
        if entry in self._forced:
            self._forced.remove(entry)
        self._planned.pop(entry.rid, None)
