"""Requests that decode waits for and that have no plan yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang_cdsp.controller.homes import Homes, fits_now
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.types import Plan, PromptView


class WaitingQueue:
    """Requests that bring their plans, most urgent first and then first come, and those
    that the policy plans."""

    def __init__(
        self, planning: Planning, ledger: InstanceLedger, clock: Callable[[], float]
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self._planning = planning
        self._policy = planning.policy
        self._ledger = ledger
        self._clock = clock
        self._homes = Homes(ledger, lambda: planning.model, clock)
        self._forced: list[PoolRequest] = []
        self._planned: dict[str, PoolRequest] = {}
        self._homeless: list[tuple[PoolRequest, Plan]] = []

    def add(self, request: PoolRequest) -> None:
        """A request waits from now on."""
        if request.forced is not None:
            self._forced.append(request)
            self._forced.sort(key=lambda waiting: -waiting.urgency)
            return
        self._planning.watch(request.tokens)
        self._planned[request.rid] = request
        view = PromptView(
            request.rid,
            request.tokens,
            arrival_s=request.arrival_s,
            priority=request.urgency,
        )
        self._policy.arrive(view, self._clock())

    def starts(self) -> Iterator[tuple[PoolRequest, Plan]]:
        """What starts now, forced plans first; each must be bound before the next is asked for."""
        while self._forced:
            forced = self._forced[0].forced
            assert forced is not None
            if not fits_now(self._forced[0], forced, self._ledger):
                break
            plan = timed_plan(forced, self._planning.model, self._ledger.view(self._clock()))
            yield self._forced.pop(0), plan
        while self._homeless:
            request, before = self._homeless[0]
            # Its times are long over.
            anew = self._homes.timed(before.placement, before.policy)
            settled = self._homes.settled(request, anew)
            if settled is None:
                return  # what comes behind it would take the room that it waits for
            yield self._homeless.pop(0)[0], settled
        if self._policy.waiting():
            now_s = self._clock()
            for rid, plan in self._policy.step(self._ledger.view(now_s), now_s):
                request = self._planned.pop(rid)
                home = None if self._homeless else self._homes.settled(request, plan)
                if home is None:
                    self._homeless.append((request, plan))
                else:
                    yield request, home

    def to_plan(self) -> tuple[PoolRequest, ...]:
        """Requests whose plan is the policy's to make, in the order of its choice."""
        return tuple(self._planned[rid] for rid in self._policy.waiting())

    def leave(self, request: PoolRequest) -> None:
        """A request ends without a plan."""
        if request in self._forced:
            self._forced.remove(request)
        self._planned.pop(request.rid, None)
        self._homeless = [waiting for waiting in self._homeless if waiting[0] is not request]
