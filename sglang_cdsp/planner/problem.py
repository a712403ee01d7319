"""One planning problem: a prompt, the pool as seen, and the numbers that the search needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_cdsp.planner.errors import PoolViewError
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.memory import history_share, kv_demand, shard_share
from sglang_cdsp.planner.types import PlannedChunk, PoolView, PromptView

NO_LIMIT = 1 << 60
"""Free slots of an instance when the pool view sets no limit."""

Placement = tuple[tuple[int, tuple[int, ...]], ...]
"""A plan without times: (tokens, group) per chunk."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything Algorithms 1 to 3 read.

    queue_s has inf for instances that are down. sizes are the candidate SP sizes, ascending, each
    with its row of Equation 1; the history's own group size is always among them.
    """

    tokens: int
    history_tokens: int
    history_group: tuple[int, ...]
    queue_s: tuple[float, ...]
    free_tokens: tuple[int, ...]
    capacity_tokens: tuple[int, ...]
    instances_per_node: int
    sizes: tuple[int, ...]
    rows: tuple[Coefficients, ...]
    page_size: int
    min_chunk: int
    improvement_rate: float

    def row(self, size: int) -> Coefficients:
        return self.rows[self.sizes.index(size)]

    def members_allowed(self, need: int) -> list[bool]:
        """Which instances are up and have at least `need` free KV slots."""
        return [
            q < math.inf and free >= need
            for q, free in zip(self.queue_s, self.free_tokens, strict=True)
        ]


def make_problem(
    prompt: PromptView,
    pool: PoolView,
    model: LatencyModel,
    sizes: tuple[int, ...],
    *,
    page_size: int = 1,
    min_chunk: int = 1,
    improvement_rate: float = 0.0,
) -> Problem:
    """Checks prompt and pool against each other and looks the coefficients up."""
    up = pool.up or (True,) * pool.size
    for i in prompt.history_instances:
        if not 0 <= i < pool.size:
            raise PoolViewError(
                f"prompt {prompt.rid}: history instance {i} is not in the pool of {pool.size}"
            )
    if prompt.history_tokens % page_size:
        raise PoolViewError(
            f"prompt {prompt.rid}: history of {prompt.history_tokens} tokens is not a multiple of "
            f"the page size {page_size}; reuse whole pages only"
        )
    usable = {s for s in sizes if s <= sum(up) and s >= len(prompt.history_instances)}
    if prompt.history_instances:
        usable.add(len(prompt.history_instances))
    ordered = tuple(sorted(usable))
    return Problem(
        prompt.tokens,
        prompt.history_tokens,
        prompt.history_instances,
        tuple(q if ok else math.inf for q, ok in zip(pool.queue_s, up, strict=True)),
        pool.free_tokens or (NO_LIMIT,) * pool.size,
        pool.capacity_tokens or (NO_LIMIT,) * pool.size,
        pool.instances_per_node,
        ordered,
        tuple(model.coefficients(s) for s in ordered),
        page_size,
        min_chunk,
        improvement_rate,
    )


def fits(problem: Problem, chunks: Placement) -> bool:
    """Whether every member has the KV slots that the chunks need (memory.py)."""
    demand = kv_demand(chunks, problem.page_size, problem.history_tokens, problem.history_group)
    return all(need <= problem.free_tokens[i] for i, need in demand.items())


def joining_need(problem: Problem, placed: int, tokens: int, size: int) -> int:
    """Slots that an instance needs to join a group of `size` for a chunk of `tokens`."""
    return history_share(placed, size, problem.page_size) + shard_share(
        tokens, size, problem.page_size
    )


def timed(problem: Problem, chunks: Placement) -> tuple[PlannedChunk, ...]:
    """Start and end of each chunk: after the chunk before it and when its whole group is free."""
    placed, clock, out = problem.history_tokens, 0.0, []
    for tokens, group in chunks:
        start = max(clock, max(problem.queue_s[i] for i in group))
        clock = start + problem.row(len(group)).predict(placed, tokens)
        placed += tokens
        out.append(PlannedChunk(tokens, group, start, clock))
    return tuple(out)


def instance_seconds(problem: Problem, chunks: tuple[PlannedChunk, ...]) -> float:
    """What the plan takes from the pool: its members' time from free to the plan's end."""
    end = chunks[-1].end_s
    return sum(end - problem.queue_s[i] for i in chunks[-1].instances)
