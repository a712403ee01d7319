"""The chunk planner and what it is measured against: `cdsp`, `cdsp-paper`, `single-chunk`.

Plans come from the compiled search; explanations from the plain one, which finds the same plan.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from sglang_cdsp.planner.borrowing import borrowed
from sglang_cdsp.planner.compiled import CDSP, PAPER, SINGLE
from sglang_cdsp.planner.explanation import ranges
from sglang_cdsp.planner.fast import FastPlanner, Settings
from sglang_cdsp.planner.paper import Report, ignore, plan_paper, plan_single_chunk
from sglang_cdsp.planner.policies.first_come import FirstComePolicy
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.search import plan_cdsp, price
from sglang_cdsp.planner.types import Plan, PoolView, PromptView

REPLAN_S = 0.02
"""What another plan for the rest of a prompt must save: the way of its orders to the instances."""


class Chunkwise(FirstComePolicy):
    """A first-come policy whose plans the compiled search finds; `mode` is one of its own."""

    mode: int
    replans = True

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._fast = FastPlanner(self.mode, options.current_model(), self.name)
        # Beside decode, by how much slower chunks are there.
        self._slow: dict[float, FastPlanner] = {}

    @abstractmethod
    def best(self, problem: Problem, report: Report) -> Candidate | None:
        """The same search in plain Python."""

    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        single = plan_single_chunk(problem)
        return self.best(problem, report or ignore), single.ttft_s if single else None

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        return self.plan_at(prompt, pool, None)

    def plan_at(self, prompt: PromptView, pool: PoolView, price: float | None) -> Plan | None:
        """The compiled search's plan; `price` as in Settings."""
        options = self.options
        model = options.current_model()
        if model is not self._fast.model:
            self._fast = FastPlanner(self.mode, model, self.name)
            self._slow = {}
        settings = Settings(
            options.page_size,
            options.min_chunk,
            options.current_rate(),
            options.spread_cost,
            price,
        )
        sizes = options.current_sizes()
        if not pool.running:
            return self._fast.plan(prompt, pool, sizes, settings)

        def planned(seen: PoolView, factor: float) -> Plan | None:
            return self._slowed(factor).plan(prompt, seen, sizes, settings)

        return borrowed(planned, pool)

    def _slowed(self, factor: float) -> FastPlanner:
        """The search where chunks take ``factor`` times as long, to a hundredth."""
        rounded = round(factor, 2)
        if rounded == 1.0:
            return self._fast
        if rounded not in self._slow:
            model = self._fast.model
            slower = model.with_factors(dict.fromkeys(model.sp_sizes, rounded))
            self._slow[rounded] = FastPlanner(self.mode, slower, self.name)
        return self._slow[rounded]

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        if not self.replans:
            return None
        found = self.plan(rest, pool)
        return found and worth_it(found, current, pool, price(self.options.current_rate()))


def worth_it(found: Plan, current: Plan, pool: PoolView, asked: float) -> Plan | None:
    """The plan for a rest if it ends no later than the current one and costs less, else None.

    Both are priced at `asked` seconds of TTFT for an instance-second; a change costs REPLAN_S.
    """

    def taken(plan: Plan) -> float:
        return sum(plan.ttft_s - min(plan.ttft_s, pool.queue_s[i]) for i in plan.instances)

    sooner, saved = current.ttft_s - found.ttft_s, taken(current) - taken(found)
    if sooner < 0 or sooner + asked * saved <= REPLAN_S:
        return None
    new = sorted(set(found.instances) - set(current.instances))
    gone = sorted(set(current.instances) - set(found.instances))
    moves = [f"joins {ranges(new)}"] * bool(new) + [f"leaves {ranges(gone)}"] * bool(gone)
    why = f"{sooner:.3f} s sooner, {-saved:+.3f} instance-seconds; {', '.join(moves) or 'recut'}"
    return replace(found, replanned=why)


class Cdsp(Chunkwise):
    """The policy `cdsp`: chunks over growing groups of the whole pool, each growth paid for."""

    name = "cdsp"
    mode = CDSP

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_cdsp(problem, report=report)


class CdspPaper(Chunkwise):
    """The policy `cdsp-paper`: Algorithm 1, chunks inside the group that Algorithm 2 chose."""

    name = "cdsp-paper"
    mode = PAPER
    replans = False  # the paper's plans are fixed at arrival

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_paper(problem, report=report)


class SingleChunk(Chunkwise):
    """The policy `single-chunk`: Algorithm 2 alone, one chunk on the group the rate allows."""

    name = "single-chunk"
    mode = SINGLE
    replans = False

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_single_chunk(problem, report=report)
