"""Requests that decode waits for and that have no plan yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.memory import fits
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
        self._forced: list[PoolRequest] = []
        self._planned: dict[str, PoolRequest] = {}

    def add(self, request: PoolRequest) -> None:
        """A request waits from now on."""
        if request.forced is not None:
            self._forced.append(request)
            self._forced.sort(key=lambda waiting: -waiting.urgency)
            return
        self._planning.watch(request.tokens)
        self._planned[request.rid] = request
        self._policy.arrive(_prompt(request), self._clock())

    def take_back(self, request: PoolRequest) -> None:
        """A request waits again that had a plan: it goes before those that it went before."""
        if request.forced is not None:
            self._forced.insert(0, request)
            self._forced.sort(key=lambda waiting: -waiting.urgency)
            return
        self._planned[request.rid] = request
        self._policy.take_back(_prompt(request), self._clock())

    def starts(self) -> Iterator[tuple[PoolRequest, Plan]]:
        """What starts now, forced plans first; each must be bound before the next is asked for."""
        for request in list(self._forced):
            forced = request.forced
            assert forced is not None
            if not self._ledger.absent.isdisjoint(forced.instances):
                continue  # it alone waits
            if not fits(forced.chunks, self._ledger.free_tokens(), self._ledger.page_size):
                break
            plan = timed_plan(forced.chunks, self._planning.model, self._ledger.view(self._clock()))
            self._forced.remove(request)
            yield request, plan
        if self._policy.waiting():
            now_s = self._clock()
            for rid, plan in self._policy.step(self._ledger.view(now_s), now_s):
                yield self._planned.pop(rid), plan

    def to_plan(self) -> tuple[PoolRequest, ...]:
        """Requests whose plan is the policy's to make, in the order of its choice."""
        return tuple(self._planned[rid] for rid in self._policy.waiting())

    def leave(self, request: PoolRequest) -> None:
        """A request ends without a plan."""
        if request in self._forced:
            self._forced.remove(request)
        self._planned.pop(request.rid, None)


def _prompt(request: PoolRequest) -> PromptView:
    return PromptView(
        request.rid,
        request.tokens,
        arrival_s=request.arrival_s,
        priority=request.urgency,
    )
