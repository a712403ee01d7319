"""A policy of one's own: the smallest SP group with the first token in time, else the fastest.

    python -m sglang.launch_server ... --cdsp --cdsp-policy examples/own_policy.py:InTime
    python -m sglang_cdsp simulate --policy examples/own_policy.py:InTime,cdsp-late --rate 2

Prompts are planned in the order of their arrival; one that fits nowhere now waits.
"""

from __future__ import annotations

from sglang_cdsp.planner.paper import ACCEPTED, Report
from sglang_cdsp.planner.policies.first_come import FirstComePolicy
from sglang_cdsp.planner.problem import Candidate, Problem

TARGET_S = 2.0
"""Seconds to the first token that are soon enough."""


class InTime(FirstComePolicy):
    """One chunk on the smallest group that is in time, so that the others stay free."""

    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        found = []
        for size in problem.sizes:
            group = problem.extend((), size, problem.tokens)  # the least busy instances with room
            if group is not None and problem.fits(((problem.tokens, group),)):
                found.append(problem.finish((), 0.0, group))
        if report:
            for candidate in found:
                report(candidate, ACCEPTED)
        fastest = min(found, key=lambda candidate: candidate.ttft_s, default=None)
        return next((c for c in found if c.ttft_s <= TARGET_S), fastest), None
