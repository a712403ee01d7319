"""The chunk planner and what it is measured against: `cdsp`, `cdsp-paper`, `single-chunk`.

Plans come from the compiled search; explanations from the plain one, which finds the same plan.
"""

from __future__ import annotations

from abc import abstractmethod

from sglang_cdsp.planner.compiled import CDSP, PAPER, SINGLE
from sglang_cdsp.planner.fast import FastPlanner, Settings
from sglang_cdsp.planner.paper import Report, ignore, plan_paper, plan_single_chunk
from sglang_cdsp.planner.policies.first_come import FirstComePolicy
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.search import plan_cdsp
from sglang_cdsp.planner.types import Plan, PoolView, PromptView


class Chunkwise(FirstComePolicy):
    """A first-come policy whose plans the compiled search finds; `mode` is one of its own."""

    mode: int

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._fast = FastPlanner(self.mode, options.current_model(), self.name)

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
        settings = Settings(
            options.page_size,
            options.min_chunk,
            options.current_rate(),
            options.spread_cost,
            price,
        )
        return self._fast.plan(prompt, pool, options.current_sizes(), settings)


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

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_paper(problem, report=report)


class SingleChunk(Chunkwise):
    """The policy `single-chunk`: Algorithm 2 alone, one chunk on the group the rate allows."""

    name = "single-chunk"
    mode = SINGLE

    def best(self, problem: Problem, report: Report) -> Candidate | None:
        return plan_single_chunk(problem, report=report)
