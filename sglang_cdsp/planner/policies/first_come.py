"""Policies that bind each prompt when it arrives, first come first served, as the paper does.

A prompt whose KV fits nowhere now waits, and those behind it wait too: overtaking would let short
prompts keep the memory from a long one for ever. Among those that wait, a higher priority goes
first. A prompt that only fits with instances that are down waits alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

from sglang_cdsp.planner.errors import PromptTooLongError
from sglang_cdsp.planner.memory import longest_chunk
from sglang_cdsp.planner.paper import ACCEPTED, Report
from sglang_cdsp.planner.policies.base import Policy
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.problem import (
    NO_LIMIT,
    Candidate,
    Problem,
    instance_seconds,
    make_problem,
    timed,
)
from sglang_cdsp.planner.types import Considered, Placement, Plan, PoolView, PromptView
from sglang_cdsp.planner.views import after_plan, empty_pool

Downs = tuple[tuple[bool, ...], tuple[int, ...]]
"""Which instances are up, and the candidate SP sizes."""

Search = Callable[[Problem, Report | None], tuple[Candidate | None, float | None]]
"""As `FirstComePolicy.search`."""

Reported = tuple[Candidate, str]
"""What a search reports: a candidate and what became of it."""


class FirstComePolicy(Policy):
    """A policy that keeps the arrival order; a subclass says which plan a prompt gets now."""

    def __init__(self, options: PolicyOptions) -> None:
        self.options = options
        self._waiting: dict[str, PromptView] = {}
        self._ranked = False  # whether any prompt has had a priority
        # Judgements of `waits_alone`, with the instances and SP sizes that they hold for.
        self._alone: dict[str, tuple[Downs, bool]] = {}

    @abstractmethod
    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        """The candidate to run (None = wait) and Algorithm 2's TTFT if it was computed.

        With `report` every candidate is reported to it, the chosen one too.
        """

    def sizes(self, pool: PoolView) -> tuple[int, ...]:
        """Candidate SP sizes at this pool."""
        return self.options.current_sizes()

    def arrive(self, prompt: PromptView, now_s: float) -> None:
        if self.options.regulator:
            self.options.regulator.observe_arrival(now_s)
        self._waiting[prompt.rid] = prompt
        self._alone.pop(prompt.rid, None)
        self._ranked = self._ranked or prompt.priority != 0
        self._rank()

    def take_back(self, prompt: PromptView, now_s: float) -> None:
        self._waiting = {prompt.rid: prompt, **self._waiting}
        self._rank()

    def _rank(self) -> None:
        if self._ranked:
            ordered = sorted(self._waiting.values(), key=lambda waiting: -waiting.priority)
            self._waiting = {waiting.rid: waiting for waiting in ordered}

    def finish(self, rid: str, now_s: float) -> None:
        self._waiting.pop(rid, None)
        self._alone.pop(rid, None)

    def waiting(self) -> tuple[str, ...]:
        return tuple(self._waiting)

    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        if self.options.regulator:
            self.options.regulator.refresh(now_s)
        started: list[tuple[str, Plan]] = []
        for rid, prompt in self._waiting.items():
            if self.waits_alone(prompt, pool):
                continue
            plan = self.plan(prompt, pool)
            if plan is None:
                break
            pool = after_plan(pool, plan, prompt, self.options.page_size)
            started.append((rid, plan))
        for rid, _ in started:
            del self._waiting[rid]
            self._alone.pop(rid, None)
        return started

    def waits_alone(self, prompt: PromptView, pool: PoolView) -> bool:
        """Whether a prompt that waits can only run with instances that are down."""
        if pool.up is None:
            return False
        if not all(pool.up[i] for i in prompt.history_instances):
            return True
        downs = (pool.up, self.sizes(pool))
        known = self._alone.get(prompt.rid)
        if known is None or known[0] != downs:
            known = self._alone[prompt.rid] = (downs, not self.could_run(prompt, pool))
        return known[1]

    def could_run(self, prompt: PromptView, pool: PoolView) -> bool:
        empty = empty_pool(prompt, pool, self.options.page_size)
        return self.plan(prompt, replace(empty, up=pool.up)) is not None

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        problem = self._problem(prompt, pool)
        return self._planned(problem, *self.search(problem, None))

    def explain(
        self, prompt: PromptView, pool: PoolView
    ) -> tuple[Plan | None, tuple[Considered, ...]]:
        return self.explained(prompt, pool, self.search)

    def explained(
        self, prompt: PromptView, pool: PoolView, search: Search
    ) -> tuple[Plan | None, tuple[Considered, ...]]:
        """What a search finds, and all that it weighs."""
        problem = self._problem(prompt, pool)
        seen: list[Reported] = []
        best, single = search(problem, lambda *reported: seen.append(reported))
        plan = self._planned(problem, best, single)
        considered = explained(problem, best, seen)
        return (replace(plan, considered=considered) if plan else None), considered

    def check(self, prompt: PromptView, pool: PoolView) -> None:
        empty = empty_pool(prompt, pool, self.options.page_size)
        if self.plan(prompt, empty) is None:
            raise PromptTooLongError(
                f"prompt {prompt.rid}: {prompt.tokens} tokens after {prompt.history_tokens} of "
                f"history do not fit an empty pool under policy {self.name}; "
                f"the largest group holds {self.longest_prompt(pool)} tokens"
            )

    def longest_prompt(self, pool: PoolView) -> int:
        """Tokens that this policy's best group holds when the pool is empty."""
        capacity = sorted(pool.capacity_tokens or (NO_LIMIT,) * pool.size, reverse=True)
        return max(
            (
                longest_chunk(capacity[size - 1], size, self.options.page_size)
                for size in self.sizes(pool)
                if size <= pool.size
            ),
            default=0,
        )

    def _planned(
        self, problem: Problem, best: Candidate | None, single_s: float | None
    ) -> Plan | None:
        if best is None:
            return None
        chunks = timed(problem, best)
        return Plan(chunks, chunks[-1].end_s, self.name, single_s)

    def _problem(self, prompt: PromptView, pool: PoolView) -> Problem:
        options = self.options
        return make_problem(
            prompt,
            pool,
            options.current_model(),
            self.sizes(pool),
            page_size=options.page_size,
            min_chunk=options.min_chunk,
            improvement_rate=options.current_rate(),
            spread_cost=options.spread_cost,
        )


def explained(
    problem: Problem, chosen: Candidate | None, seen: list[Reported]
) -> tuple[Considered, ...]:
    """The distinct candidates of a search: the chosen one, then by TTFT; last what cannot run."""
    out: dict[Placement | str, Considered] = {}
    for candidate, reason in seen:
        chunks, ttft = candidate.chunks, candidate.ttft_s
        if ttft == math.inf:
            out.setdefault(reason, Considered((), ttft, 0.0, False, reason))
        elif candidate == chosen or chunks not in out:
            spent = instance_seconds(problem, candidate)
            won = candidate == chosen
            text = "chosen" if won else _why_beaten(candidate, chosen, reason)
            out[chunks] = Considered(timed(problem, candidate), ttft, spent, won, text)
    return tuple(sorted(out.values(), key=lambda c: (not c.chosen, c.ttft_s)))


def _why_beaten(candidate: Candidate, chosen: Candidate | None, reason: str) -> str:
    if chosen is None or reason != ACCEPTED:
        return reason
    slower = candidate.ttft_s - chosen.ttft_s
    if slower > 0:
        return f"{slower:.3f} s slower than the chosen plan"
    return "dearer than the chosen plan at this improvement rate"
