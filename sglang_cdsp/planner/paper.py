"""Algorithms 1, 2 and 3 of Tetris in plain Python, the form that explains and that tests trust.

Decisions where the paper is silent or contradicts itself (papers.md 1.10, 1.11):

- Queue times inside the recursion follow Equation 2: they are relative to the end of the chunks
  already placed, and the caller adds the time up to there. `absolute_queues` keeps the other
  reading, the worked example's; at improvement rate 0 both give the same plans.
- The chunk length is the closed-form root of Equation 1, rounded down so that the boundary is a
  multiple of the page size in prompt positions. Shorter than `min_chunk`, or all that is left
  (an empty remainder), is illegal.
- A group that cannot hold its shards is not a candidate; a chunk is cut to what its group can
  hold before it is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_cdsp.planner.groups import get_group
from sglang_cdsp.planner.memory import held_after, history_share, longest_chunk
from sglang_cdsp.planner.problem import Placement, Problem, fits, joining_need

Report = Callable[[Placement, float, str], None]
"""Called with each candidate: chunks, TTFT (inf if it cannot run) and what became of it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Chunks (those already placed first) and the TTFT from the level's own moment on."""

    chunks: Placement
    ttft_s: float

    @property
    def group(self) -> tuple[int, ...]:
        return self.chunks[-1][1]


@dataclass(frozen=True, slots=True)
class Level:
    """Where the recursion stands: what is placed, what is left, and the pool from here on."""

    remaining: int
    chunks: Placement
    queue_s: Sequence[float]
    sizes: tuple[int, ...]
    pool: tuple[bool, ...]


def _ignore(chunks: Placement, ttft_s: float, reason: str) -> None:
    return None


def first_level(problem: Problem) -> Level:
    pool = tuple(q < math.inf for q in problem.queue_s)
    return Level(problem.tokens, (), problem.queue_s, problem.sizes, pool)


def plan_paper(
    problem: Problem, *, absolute_queues: bool = False, report: Report = _ignore
) -> Candidate | None:
    """Algorithm 1: the paper's chunked plan, or None if no group can hold the prompt now."""
    return _schedule(problem, first_level(problem), absolute_queues, 0.0, report)


def plan_single_chunk(problem: Problem, *, report: Report = _ignore) -> Candidate | None:
    """Algorithm 2 alone: the whole prompt as one chunk."""
    return single_chunk(problem, first_level(problem), 0.0, report)


def single_chunk(
    problem: Problem, level: Level, elapsed_s: float, report: Report
) -> Candidate | None:
    """Algorithm 2 at one level: the larger SP size must beat the last accepted one by the rate."""
    placed, initial = _placed(problem, level)
    best: Candidate | None = None
    for size in level.sizes:
        if size < len(initial):
            continue
        need = joining_need(problem, placed, level.remaining, size)
        allowed = _allowed(problem, level, need)
        group = get_group(level.queue_s, problem.instances_per_node, allowed, initial, size)
        if group is None:
            report((), math.inf, f"SP {size}: too few instances with {need} free KV slots")
            continue
        chunks = (*level.chunks, (level.remaining, group))
        ttft = _free_at(level.queue_s, group) + problem.row(size).predict(placed, level.remaining)
        if ttft == math.inf:
            report(chunks, ttft, f"SP {size}: an instance that holds the history is down")
        elif not fits(problem, chunks):
            report(chunks, math.inf, f"SP {size}: the group cannot hold the KV")
        elif best is None or ttft < best.ttft_s * (1 - problem.improvement_rate):
            report(chunks, elapsed_s + ttft, "accepted by Algorithm 2")
            best = Candidate(chunks, ttft)
        else:
            gain = 1 - (elapsed_s + ttft) / (elapsed_s + best.ttft_s)
            report(
                chunks,
                elapsed_s + ttft,
                f"SP {size}: {gain:.1%} faster than SP {len(best.group)}, "
                f"the improvement rate asks for more than {problem.improvement_rate:.1%}"
                if gain > 0
                else f"SP {size}: not faster than SP {len(best.group)}",
            )
    return best


def chunk_length(
    problem: Problem,
    level: Level,
    current: tuple[int, ...],
    following: tuple[int, ...],
    clock_s: float = 0.0,
) -> int:
    """Algorithm 3: tokens on `current` that fill the time until `following` is free; 0 = illegal.

    `clock_s` is the earliest that `current` can start besides its queues (absolute reading).
    """
    placed, initial = _placed(problem, level)
    size = len(current)
    start = max(clock_s, _free_at(level.queue_s, current))
    budget = _free_at(level.queue_s, following) - start
    room = _room(problem, level, current, initial, placed)
    tokens = min(
        problem.row(size).fill(placed, budget),
        longest_chunk(room, size, problem.page_size),
        level.remaining,
    )
    end = (placed + int(tokens)) // problem.page_size * problem.page_size
    length = end - placed
    return length if max(problem.min_chunk, 1) <= length < level.remaining else 0


def _schedule(
    problem: Problem, level: Level, absolute: bool, elapsed_s: float, report: Report
) -> Candidate | None:
    """Algorithm 1. `elapsed_s` is the time up to this level's moment, for the report only."""
    clock = elapsed_s if absolute else 0.0
    base = (
        _single_absolute(problem, level, clock, report)
        if absolute
        else single_chunk(problem, level, elapsed_s, report)
    )
    if base is None:
        return None
    best = base
    placed, initial = _placed(problem, level)
    inside = tuple(i in base.group for i in range(len(level.queue_s)))
    sizes = tuple(s for s in level.sizes if len(initial) <= s <= len(base.group))
    restricted = Level(level.remaining, level.chunks, level.queue_s, sizes, inside)
    for position, size in enumerate(sizes):
        need = joining_need(problem, placed, max(problem.min_chunk, 1), size)
        allowed = _allowed(problem, restricted, need)
        current = get_group(level.queue_s, problem.instances_per_node, allowed, initial, size)
        if current is None:
            continue
        for larger in sizes[position + 1 :]:
            following = get_group(
                level.queue_s, problem.instances_per_node, inside, current, larger
            )
            if following is None:
                continue
            length = chunk_length(problem, level, current, following, clock)
            chunks = (*level.chunks, (length, current))
            if not length or not fits(problem, chunks):
                continue
            start = max(clock, _free_at(level.queue_s, current))
            end = start + problem.row(size).predict(placed, length)
            queues = level.queue_s if absolute else [max(0.0, q - end) for q in level.queue_s]
            rest = Level(
                level.remaining - length,
                chunks,
                queues,
                tuple(s for s in sizes if s >= larger),
                inside,
            )
            tail = _schedule(problem, rest, absolute, end if absolute else elapsed_s + end, report)
            if tail is None:
                continue
            total = tail.ttft_s if absolute else end + tail.ttft_s
            if total < best.ttft_s:
                best = Candidate(tail.chunks, total)
    return best


def _single_absolute(
    problem: Problem, level: Level, clock_s: float, report: Report
) -> Candidate | None:
    """Algorithm 2 with absolute queue times: no group starts before `clock_s`."""
    queues = [max(q, clock_s) for q in level.queue_s]
    moved = Level(level.remaining, level.chunks, queues, level.sizes, level.pool)
    return single_chunk(problem, moved, 0.0, report)


def _placed(problem: Problem, level: Level) -> tuple[int, tuple[int, ...]]:
    """History in front of this level, cached and planned, and the group that holds it."""
    placed = problem.history_tokens + sum(tokens for tokens, _ in level.chunks)
    return placed, level.chunks[-1][1] if level.chunks else problem.history_group


def _allowed(problem: Problem, level: Level, need: int) -> list[bool]:
    free = problem.free_tokens
    return [inside and free[i] >= need for i, inside in enumerate(level.pool)]


def _free_at(queue_s: Sequence[float], group: tuple[int, ...]) -> float:
    return max(queue_s[i] for i in group)


def _room(
    problem: Problem,
    level: Level,
    group: tuple[int, ...],
    initial: tuple[int, ...],
    placed: int,
) -> int:
    """Slots left for a shard on the tightest member, after the history that it must hold."""
    history = problem.history_group
    page = problem.page_size
    held = held_after(level.chunks, page, problem.history_tokens, len(history))
    cached = (
        history_share(problem.history_tokens, len(history), page) if problem.history_tokens else 0
    )
    arriving = history_share(placed, len(group), page) if placed else 0
    return min(
        problem.free_tokens[i] + (cached if i in history else 0) - held
        if i in initial
        else problem.free_tokens[i] - arriving
        for i in group
    )
