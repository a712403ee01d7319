"""Prompts that fit only with absent instances: how long they wait, and what they are told.

Admission judges by the whole pool. While a seat comes back such a prompt waits, as long as
``--cdsp-seat-timeout`` says; where a seat stays down it is told so at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from sglang_cdsp.controller.homes import home_tokens
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.presence import Presence, named
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.policies import Policy
from sglang_cdsp.planner.types import PoolView, PromptView

FLAG = "--cdsp-seat-timeout"


@dataclass(frozen=True)
class _Judged:
    """A verdict, and the seats that it was given for.

    Attributes:
        prefill: seats that take chunks.
        fits_now: it fits the seats that are up, once others have ended.
        fits_then: it will fit when those come back that do.
    """

    up: frozenset[int]
    expected: frozenset[int]
    prefill: frozenset[int]
    fits_now: bool
    fits_then: bool


class Absences:
    """Watches the prompts without a plan while seats are absent."""

    def __init__(
        self,
        *,
        presence: Presence,
        table: RequestTable,
        ledger: InstanceLedger,
        policy: Policy,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Watch nobody yet.

        Args:
            timeout_s: how long a prompt waits for seats that are coming back.
            clock: gives monotonic seconds.
        """
        self._presence = presence
        self._table = table
        self._ledger = ledger
        self._policy = policy
        self._timeout_s = timeout_s
        self._clock = clock
        self._judged: dict[PoolRequest, _Judged] = {}
        self._since_s: dict[PoolRequest, float] = {}

    def overdue(self) -> list[tuple[PoolRequest, str]]:
        """Prompts that wait no longer for absent seats, and what they are told."""
        if self._presence.all_up:
            self._judged, self._since_s = {}, {}
            return []
        waiting, now_s = self._table.without_plan, self._clock()
        up, expected = self._presence.up, self._presence.expected
        seats = (up, expected, self._ledger.roles.prefill)
        view = self._ledger.view(now_s)
        found: list[tuple[PoolRequest, str]] = []
        judged, since_s = self._judged, self._since_s
        self._judged, self._since_s = {}, {}
        for request in waiting:
            verdict = judged.get(request)
            if verdict is None or (verdict.up, verdict.expected, verdict.prefill) != seats:
                verdict = self._judge(request, view, up, expected)
            self._judged[request] = verdict
            if verdict.fits_now:
                continue
            begin_s = self._since_s[request] = since_s.get(request, now_s)
            if not verdict.fits_then and self._presence.missing:
                found.append((request, self._stay_down(request)))
            elif now_s - begin_s >= self._timeout_s:
                found.append((request, self._too_long(request)))
        return found

    def _judge(
        self, request: PoolRequest, view: PoolView, up: frozenset[int], expected: frozenset[int]
    ) -> _Judged:
        fits_now = self._fits(request, view, up)
        fits_then = fits_now or self._fits(request, view, expected)
        return _Judged(up, expected, self._ledger.roles.prefill, fits_now, fits_then)

    def _fits(self, request: PoolRequest, view: PoolView, seats: Collection[int]) -> bool:
        """Whether these seats could run a request if they had nothing else."""
        if request.forced is not None:
            return set(request.forced.instances) <= set(seats)
        seats = self._ledger.roles.prefill.intersection(seats)
        if not self._has_home(request, view, seats):
            return False
        present = replace(view, up=tuple(i in seats for i in range(view.size)))
        prompt = PromptView(request.rid, request.tokens, arrival_s=request.arrival_s)
        return self._policy.could_run(prompt, present)

    def _has_home(self, request: PoolRequest, view: PoolView, seats: Collection[int]) -> bool:
        """Whether one of these seats could hold all of a prompt that it is to decode."""
        assert view.capacity_tokens is not None
        need = home_tokens(request, self._ledger.page_size)
        return any(view.capacity_tokens[seat] >= need for seat in seats)

    def _too_long(self, request: PoolRequest) -> str:
        absent = self._presence.expected - self._presence.up
        demanded = _demanded(request)
        if demanded is not None:
            return (
                f"the plan that the request demands names {named(demanded & absent)}, absent for "
                f"more than the {self._timeout_s:g} s that it waits ({FLAG}): send it again "
                "later, or without a plan"
            )
        return (
            f"the prompt fits only with {named(absent)}, absent for more than the "
            f"{self._timeout_s:g} s that it waits ({FLAG}): send it again later"
        )

    def _stay_down(self, request: PoolRequest) -> str:
        demanded = _demanded(request)
        seats = self._presence.missing
        what, instead = "the prompt fits only with", "a shorter prompt"
        if demanded is not None:
            seats &= demanded
            what, instead = "the plan that the request demands names", "it without a plan"
        return (
            f"{what} instances that stay down ({self._presence.reasons(seats)}): start them with "
            f'POST /cdsp/update {{"seats": {{"{min(seats)}": "start"}}}}, or send {instead}'
        )


def _demanded(request: PoolRequest) -> frozenset[int] | None:
    """The instances of the plan that a request brings, None where it brings none."""
    return None if request.forced is None else frozenset(request.forced.instances)
