"""Algorithm 1 as the paper's worked example reads it: the improvement rate weighs the whole TTFT.

A second implementation beside `planner/paper.py`. Its times count from the planning moment at every
level, where Equation 2 subtracts what is over by then; at improvement rate 0 the two readings must
agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.types import Placement


def plan_absolute(problem: Problem) -> Candidate | None:
    """Algorithm 1: the chunked plan, or None if no group can hold the prompt now."""
    return _plan(problem, (), 0.0, problem.sizes, (True,) * len(problem.queue_s))


def _plan(
    problem: Problem,
    chunks: Placement,
    clock_s: float,
    sizes: Sequence[int],
    inside: Sequence[bool],
) -> Candidate | None:
    """The best plan that goes on from `chunks`, which end at `clock_s`."""
    base = _base(problem, chunks, clock_s, sizes, inside)
    if base is None:
        return None
    members = [i in base.group for i in range(len(problem.queue_s))]
    found = [base]
    for size in sizes:
        group = problem.extend(chunks, size, problem.min_chunk, inside=members)
        if group is None:
            continue
        for larger in (s for s in sizes if size < s <= len(base.group)):
            following = problem.extend((*chunks, (0, group)), larger, 0, inside=members)
            if following is None:
                continue
            start_s = max(clock_s, problem.free_at(group))
            length = problem.fill(chunks, group, start_s, problem.free_at(following))
            grown = (*chunks, (length, group))
            if length and problem.fits(grown):
                end_s = start_s + problem.row(group).predict(problem.placed(chunks), length)
                left = [s for s in sizes if larger <= s <= len(base.group)]
                rest = _plan(problem, grown, end_s, left, members)
                found += [rest] if rest else []
    return min(found, key=lambda candidate: candidate.ttft_s)


def _base(
    problem: Problem,
    chunks: Placement,
    clock_s: float,
    sizes: Sequence[int],
    inside: Sequence[bool],
) -> Candidate | None:
    """Algorithm 2: all that is left as one chunk; a larger size must cut the whole TTFT enough."""
    left = problem.tokens + problem.history_tokens - problem.placed(chunks)
    best: Candidate | None = None
    for size in sizes:
        group = problem.extend(chunks, size, left, inside=inside)
        if group is None:
            continue
        found = problem.finish(chunks, clock_s, group)
        asked = (1 - problem.improvement_rate) * best.ttft_s if best else float("inf")
        if problem.fits(found.chunks) and found.ttft_s < asked:
            best = found
    return best
