"""The search behind `cdsp`: every chain of growing groups, each growth paid for.

Two facts make the search exact and small. For a given chain of sizes the best chunk lengths are
Algorithm 3's: a chunk that ends before the next group is free wastes that gap, and one that ends
later does work that the larger group would do faster. And the chains are few: 2^m - 1 for m sizes.
So the chains of the whole pool are walked, not only those inside the base plan's group, to which
Algorithm 1 keeps. Where the pool has several nodes, each chain is walked twice: with the paper's
node rules, and with the shortest queues anywhere at the price of `spread_cost`.

What is best for one request is not best for the pool, so the search starts from the paper's plan
(Algorithm 1 at the improvement rate r) and goes on to a plan of another chain only if

    TTFT' < TTFT * (1 - r * weight)

and `growth_weight` says what the growth takes from the pool. At r = 0 any faster plan is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from sglang_cdsp.planner.paper import Report, ignore, plan_paper
from sglang_cdsp.planner.problem import Candidate, Placement, Problem, instance_seconds


def growth_weight(before_s: float, after_s: float) -> float:
    return max(0.0, after_s / before_s - 1)


def plan_cdsp(problem: Problem, *, report: Report = ignore) -> Candidate | None:
    """The plan of `cdsp`, or None if no group can hold the prompt now."""
    best = plan_paper(problem, report=report)
    if best is None:
        return None
    for found in fastest_by_size(problem, report):
        before, after = instance_seconds(problem, best), instance_seconds(problem, found)
        weight = growth_weight(before, after)
        if found.ttft_s < best.ttft_s * (1 - problem.improvement_rate * weight):
            best = found
    return best


def fastest_by_size(problem: Problem, report: Report = ignore) -> list[Candidate]:
    """For each size of the last group, ascending, the fastest chain that ends there."""
    best: dict[int, Candidate] = {}
    several = len(problem.queue_s) > problem.instances_per_node
    for spread in (False, True) if several else (False,):
        for first in range(len(problem.sizes)):
            for found in _chains(problem, (), 0.0, first, spread):
                report(found.chunks, found.ttft_s, "not the fastest with its last group's size")
                size = len(found.group)
                if size not in best or found.ttft_s < best[size].ttft_s:
                    best[size] = found
    return [best[size] for size in sorted(best)]


def _chains(
    problem: Problem, chunks: Placement, clock_s: float, position: int, spread: bool
) -> Iterator[Candidate]:
    """Every chain that goes on from `chunks`, which end at `clock_s`, with sizes[position]."""
    placed = problem.placed(chunks)
    left = problem.tokens + problem.history_tokens - placed
    size = problem.sizes[position]
    group = problem.extend(chunks, size, left, spread=spread)
    if group is not None:
        last = problem.finish(chunks, clock_s, group)
        if problem.fits(last.chunks):
            yield last
    group = problem.extend(chunks, size, problem.min_chunk, spread=spread)
    if group is None:
        return
    start = max(clock_s, problem.free_at(group))
    for larger in range(position + 1, len(problem.sizes)):
        following = problem.extend((*chunks, (0, group)), problem.sizes[larger], 0, spread=spread)
        if following is None:
            continue
        length = problem.fill(chunks, group, start, problem.free_at(following))
        grown = (*chunks, (length, group))
        if not length or not problem.fits(grown):
            continue
        end = start + problem.row(group).predict(placed, length)
        yield from _chains(problem, grown, end, larger, spread)
