"""The search behind `cdsp`: every chain of growing groups, each growth paid for.

Two facts make the search exact and small. For a given chain of sizes the best chunk lengths are
Algorithm 3's: a chunk that ends before the next group is free wastes that gap, and one that ends
later does work that the larger group would do faster. And the chains are few: 2^m - 1 for m sizes.
So the chains of the whole pool are walked, not only those inside the base plan's group, to which
Algorithm 1 keeps. Where the pool has several nodes each chain is walked twice: with the paper's
node rules, and with the shortest queues anywhere at the price of `spread_cost`.

What is best for one request is not best for the pool. So the search starts from the paper's plan
(Algorithm 1 at the improvement rate r) and, among the chains that are faster still, takes the one
with the least

    TTFT + price(r) * instance-seconds

where instance-seconds is the time that the plan's last group is taken from the pool. At r = 0 the
price is 0 and the fastest plan wins; the higher r, the less may be spent on a gain. A `cdsp` plan
is never slower than the paper's at the same state. From `SATURATED_RATE` on it is the paper's: such
rates belong to a pool whose queues only grow, where gaps that long prompts fill are gaps that
short prompts behind them needed.

`plan_priced` is the same search with a price of the caller's own and without the paper's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from sglang_cdsp.planner.paper import ACCEPTED, Report, ignore, plan_paper
from sglang_cdsp.planner.problem import Candidate, Problem, instance_seconds
from sglang_cdsp.planner.types import Placement

PRICE_SLOPE, PRICE_LIMIT = 20.0, 4.0
"""The price of an instance-second, found under load with `python -m bench.simulated.planner_load`:
it rises with the improvement rate up to a limit at which a gain must cost the pool next to nothing.
"""

SATURATED_RATE = 0.55
"""From this improvement rate on `cdsp` adds nothing to the paper's plan."""

SMALLEST_RATE = 1.0
"""At this improvement rate Algorithm 2 takes the smallest group that can hold the prompt."""


def price(improvement_rate: float) -> float:
    """Seconds of TTFT that one more instance-second must save, at an improvement rate in [0, 1)."""
    return min(PRICE_LIMIT, PRICE_SLOPE * improvement_rate)


def plan_cdsp(problem: Problem, *, report: Report = ignore) -> Candidate | None:
    """The plan of `cdsp`, or None if no group can hold the prompt now."""
    base = plan_paper(problem, report=report)
    if base is None:
        return None
    if problem.improvement_rate >= SATURATED_RATE:
        return base
    asked = price(problem.improvement_rate)
    return _cheapest(problem, base, asked, "not faster than the paper's plan", report)


def plan_priced(problem: Problem, asked: float, *, report: Report = ignore) -> Candidate | None:
    """The plan with the least TTFT + `asked` * instance-seconds; None if no group can hold it.

    Only plans that end before the smallest group's are considered: others cost time and
    instances.
    """

    def known(candidate: Candidate, reason: str) -> None:
        if candidate.ttft_s == math.inf or reason == ACCEPTED:
            report(candidate, reason)

    smallest = plan_paper(replace(problem, improvement_rate=SMALLEST_RATE), report=known)
    if smallest is None:
        return None
    return _cheapest(problem, smallest, asked, "not faster than the smallest group", report)


def _cheapest(
    problem: Problem, base: Candidate, asked: float, too_slow: str, report: Report
) -> Candidate:
    """Among `base` and the chains that end before it the one that costs least at this price."""
    best, least = base, _cost(problem, base, asked)
    for found in chains(problem):
        if found.ttft_s >= base.ttft_s:
            report(found, too_slow)
        elif _cost(problem, found, asked) >= least:
            report(found, _too_dear(problem, found, best, asked))
        else:
            report(found, ACCEPTED)
            best, least = found, _cost(problem, found, asked)
    return best


def chains(problem: Problem) -> Iterator[Candidate]:
    """Every chain with its fill-the-gap lengths; first spread over nodes, then by their rules."""
    several = len(problem.queue_s) > problem.instances_per_node
    for spread in (True, False) if several else (False,):
        for first in range(len(problem.sizes)):
            yield from _chains(problem, (), 0.0, first, spread)


def _chains(
    problem: Problem, chunks: Placement, clock_s: float, position: int, spread: bool
) -> Iterator[Candidate]:
    """Every chain that goes on from `chunks`, which end at `clock_s`, with sizes[position]."""
    placed = problem.placed(chunks)
    left = problem.tokens + problem.history_tokens - placed
    size = problem.sizes[position]
    group = problem.extend(chunks, size, left, spread=spread)
    if group is not None:
        last = problem.finish(chunks, clock_s, group, spread)
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
        length = problem.fill(chunks, group, start, problem.free_at(following), spread)
        grown = (*chunks, (length, group))
        if not length or not problem.fits(grown):
            continue
        end = start + problem.row(group, spread).predict(placed, length)
        yield from _chains(problem, grown, end, larger, spread)


def _cost(problem: Problem, candidate: Candidate, asked: float) -> float:
    return candidate.ttft_s + asked * instance_seconds(problem, candidate)


def _too_dear(problem: Problem, found: Candidate, best: Candidate, asked: float) -> str:
    gain = best.ttft_s - found.ttft_s
    extra = instance_seconds(problem, found) - instance_seconds(problem, best)
    if gain <= 0:
        return "slower than the plan taken, and saves too few instance-seconds"
    return f"gains {gain:.3f} s for {extra:.3f} instance-seconds more; the price is {asked:.3g}"
