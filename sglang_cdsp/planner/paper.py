"""Algorithms 1, 2 and 3 of Tetris in plain Python: the form that explains and that tests trust.

`compiled/` is the same search, compiled; the two agree to the bit (tests/planner/compiled).

Decisions where the paper is silent or contradicts itself (see docs/planner.md):

- Queue times inside the recursion follow Equation 2, relative to the end of the chunks already
  placed, so at deeper levels the improvement rate weighs the remaining time. Clocks are absolute
  here, so that this shows only in the comparison of two sizes. The worked example reads it the
  other way, by the whole TTFT (tests/planner/absolute.py); at rate 0 both give the same plans.
- The chunk length is the closed-form root of Equation 1, rounded down to a page boundary. Shorter
  than the minimum chunk, or all that is left (an empty remainder), is illegal.
- A group that cannot hold its shards is not a candidate; a chunk is cut to what its group can
  hold before it is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.types import Placement

Report = Callable[[Candidate, str], None]
"""Called with each candidate (TTFT inf if it cannot run) and what became of it."""


ACCEPTED = "accepted, then beaten"
"""The reason of a candidate that was the best one for a while."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the recursion: chunks placed, their end, and the sizes and members left."""

    chunks: Placement
    clock_s: float
    sizes: tuple[int, ...]
    pool: tuple[bool, ...]


def ignore(candidate: Candidate, reason: str) -> None:
    """A Report that keeps nothing."""


def plan_single_chunk(problem: Problem, *, report: Report = ignore) -> Candidate | None:
    """Algorithm 2 alone: the whole prompt as one chunk, or None if no group can hold it now."""
    return _single_chunk(problem, _first_level(problem), report)


def plan_paper(problem: Problem, *, report: Report = ignore) -> Candidate | None:
    """Algorithm 1: the paper's chunked plan, or None if no group can hold the prompt now."""
    return _schedule(problem, _first_level(problem), report)


def _first_level(problem: Problem) -> Level:
    return Level((), 0.0, problem.sizes, (True,) * len(problem.queue_s))


def _single_chunk(problem: Problem, level: Level, report: Report) -> Candidate | None:
    """Algorithm 2 at one level: a larger SP size must beat the last accepted one by the rate."""
    origin = level.clock_s
    left = problem.tokens + problem.history_tokens - problem.placed(level.chunks)
    initial = problem.holders(level.chunks)
    best: Candidate | None = None
    for size in level.sizes:
        if size < len(initial):
            continue
        group = problem.extend(level.chunks, size, left, inside=level.pool)
        if group is None:
            nothing = Candidate((), math.inf)
            report(nothing, f"SP {size}: too few instances that are up and can hold the KV")
            continue
        found = problem.finish(level.chunks, level.clock_s, group)
        if not problem.fits(found.chunks):
            unfit = Candidate(found.chunks, math.inf)
            report(unfit, f"SP {size}: the group cannot hold the KV")
            continue
        keep = 1 - problem.improvement_rate
        if best is None or found.ttft_s - origin < (best.ttft_s - origin) * keep:
            report(found, ACCEPTED)
            best = found
        else:
            report(found, _rejected(problem, found, best, origin))
    return best


def _schedule(problem: Problem, level: Level, report: Report) -> Candidate | None:
    """Algorithm 1 at one level: the base plan, or a chunk in front of the best plan of the rest."""
    best = base = _single_chunk(problem, level, report)
    if base is None or best is None:
        return None
    inside = tuple(i in base.group for i in range(len(problem.queue_s)))
    held = len(problem.holders(level.chunks))
    sizes = tuple(s for s in level.sizes if held <= s <= len(base.group))
    for position, size in enumerate(sizes):
        current = problem.extend(level.chunks, size, problem.min_chunk, inside=inside)
        if current is None:
            continue
        start = max(level.clock_s, problem.free_at(current))
        for larger in sizes[position + 1 :]:
            following = problem.extend((*level.chunks, (0, current)), larger, 0, inside=inside)
            if following is None:
                continue
            length = problem.fill(level.chunks, current, start, problem.free_at(following))
            chunks = (*level.chunks, (length, current))
            if not length or not problem.fits(chunks):
                continue
            end = start + problem.row(current).predict(problem.placed(level.chunks), length)
            rest = Level(chunks, end, tuple(s for s in sizes if s >= larger), inside)
            found = _schedule(problem, rest, report)
            if found is not None and found.ttft_s < best.ttft_s:
                best = found
    return best


def _rejected(problem: Problem, found: Candidate, best: Candidate, origin: float) -> str:
    gain = 1 - (found.ttft_s - origin) / (best.ttft_s - origin)
    than = f"SP {len(found.group)} over SP {len(best.group)}"
    if gain <= 0:
        return f"{than}: not faster"
    return f"{than}: gains {gain:.1%}, the improvement rate asks {problem.improvement_rate:.1%}"
