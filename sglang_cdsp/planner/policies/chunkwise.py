"""The paper's planner and its ablation: `cdsp-paper` (Algorithms 1 to 3), `single-chunk` (2)."""

from __future__ import annotations

from sglang_cdsp.planner.paper import Report, plan_paper, plan_single_chunk
from sglang_cdsp.planner.policies.first_come import FirstComePolicy
from sglang_cdsp.planner.problem import Candidate, Problem


class CdspPaper(FirstComePolicy):
    """Algorithm 1: chunked plans inside the group that Algorithm 2 chose."""

    name = "cdsp-paper"

    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        single = plan_single_chunk(problem)
        if single is None:
            return None, None
        best = plan_paper(problem, report=report) if report else plan_paper(problem)
        return best, single.ttft_s


class SingleChunk(FirstComePolicy):
    """Algorithm 2 alone: one chunk on the group that the improvement rate allows."""

    name = "single-chunk"

    def search(
        self, problem: Problem, report: Report | None
    ) -> tuple[Candidate | None, float | None]:
        best = plan_single_chunk(problem, report=report) if report else plan_single_chunk(problem)
        return best, best.ttft_s if best else None
