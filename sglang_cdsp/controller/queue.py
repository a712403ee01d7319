"""Requests that decode waits for and that have no plan yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from sglang_cdsp.controller.homes import Homes, fits_now
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.types import Plan, PoolView, PromptView


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
        self._homes = Homes(
            ledger,
            lambda: planning.model,
            self._shared,
            keeps=planning.prefixes is not None,
        )
        self._forced: list[PoolRequest] = []
        self._planned: dict[str, PoolRequest] = {}
        self._homeless: list[tuple[PoolRequest, Plan]] = []

    def __len__(self) -> int:
        return len(self._forced) + len(self._planned) + len(self._homeless)

    def add(self, request: PoolRequest) -> None:
        """A request waits from now on."""
        if request.forced is not None:
            self._forced.append(request)
            self._forced.sort(key=lambda waiting: -waiting.urgency)
            return
        self._planning.watch(request.tokens)
        self._planned[request.rid] = request
        self._look_for_prefix(request)
        self._policy.arrive(_prompt(request), self._clock())

    def take_back(self, request: PoolRequest) -> None:
        """A request waits again that had a plan: it goes before those that it went before."""
        if request.forced is not None:
            self._forced.insert(0, request)
            self._forced.sort(key=lambda waiting: -waiting.urgency)
            return
        self._planned[request.rid] = request
        self._look_for_prefix(request)
        self._policy.take_back(_prompt(request), self._clock())

    def _look_for_prefix(self, request: PoolRequest) -> None:
        if self._planning.prefixes is not None:
            self._planning.prefixes.waits(request)

    def starts(self) -> Iterator[tuple[PoolRequest, Plan]]:
        """What starts now, forced plans first; each must be bound before the next is asked for."""
        for request in list(self._forced):
            forced = request.forced
            assert forced is not None
            if not self._ledger.absent.isdisjoint(forced.instances):
                continue  # it alone waits
            view = self._ledger.view(self._clock())
            assert view.free_tokens is not None
            if not fits_now(request, forced.chunks, view.free_tokens, self._ledger.page_size):
                break
            self._forced.remove(request)
            yield request, timed_plan(forced.chunks, self._planning.model, view)
        self._plan_homeless_anew()
        while self._homeless:
            request, before = self._homeless[0]
            view = self._ledger.view(self._clock())
            # Its times are long over.
            anew = self._homes.timed(before.placement, before.policy, view)
            settled = self._homes.settled(request, anew, view)
            if settled is None:
                return  # what comes behind it would take the room that it waits for
            yield self._homeless.pop(0)[0], self._as_it_stands(request, settled, view)
        if self._policy.waiting():
            now_s = self._clock()
            for rid, plan in self._policy.step(self._ledger.view(now_s), now_s):
                request = self._planned.pop(rid)
                view = self._ledger.view(now_s)
                if plan.reused:
                    # Without room at its holder another plan serves it better than to wait for it.
                    settled = self._homes.settled(request, plan, view)
                    if settled is None or self._homeless:
                        self.take_back(request)
                    else:
                        yield request, settled
                    continue
                home = None if self._homeless else self._homes.settled(request, plan, view)
                if home is None:
                    self._homeless.append((request, plan))
                else:
                    yield request, home

    def _shared(self, request: PoolRequest, plan: Plan) -> int:
        """Slots of the prefix that a plan starts from, if another plan holds it already."""
        prefixes = self._planning.prefixes
        if prefixes is None:
            return 0
        there = self._ledger.prefixes(plan.home)
        return plan.reused if prefixes.shared(request, plan.home, plan.reused, there) else 0

    def _as_it_stands(self, request: PoolRequest, plan: Plan, view: PoolView) -> Plan:
        """A plan that has waited for a home, or the policy's of now if that is worth the change.

        It was made for the pool of an earlier moment: other instances may be free by now.
        """
        if not self._policy.replans:
            return plan
        found = self._policy.replan(_prompt(request), plan, view)
        better = found and self._homes.settled(request, replace(found, replanned=""), view)
        return better or plan

    def _plan_homeless_anew(self) -> None:
        """Plans without a home that name an instance which has left, or takes no chunks any more,
        are the policy's to make again.

        So are those behind them, which keep their places.
        """
        closed = self._ledger.closed
        if any(not closed.isdisjoint(plan.instances) for _, plan in self._homeless):
            waiting, self._homeless = self._homeless, []
            for request, _ in reversed(waiting):
                self.take_back(request)

    def to_plan(self) -> tuple[PoolRequest, ...]:
        """Requests whose plan is the policy's to make, in the order of its choice.

        First those that have one and wait for a home, which it may have to make again.
        """
        homeless = (request for request, _ in self._homeless)
        return (*homeless, *(self._planned[rid] for rid in self._policy.waiting()))

    def leave(self, request: PoolRequest) -> None:
        """A request ends without a plan."""
        if request in self._forced:
            self._forced.remove(request)
        self._planned.pop(request.rid, None)
        if self._planning.prefixes is not None:
            self._planning.prefixes.leaves(request)
        self._homeless = [waiting for waiting in self._homeless if waiting[0] is not request]


def _prompt(request: PoolRequest) -> PromptView:
    return PromptView(
        request.rid,
        request.tokens,
        arrival_s=request.arrival_s,
        priority=request.urgency,
    )
