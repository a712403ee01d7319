"""One planning problem: a prompt, the pool as seen, and the numbers that the search needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_cdsp.planner.errors import PoolViewError
from sglang_cdsp.planner.groups import get_group, straddles
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.memory import (
    fits,
    held_after,
    history_share,
    longest_chunk,
    shard_share,
)
from sglang_cdsp.planner.types import Group, Placement, PlannedChunk, PoolView, PromptView

NO_LIMIT = 1 << 60
"""Free slots of an instance when the pool view sets no limit."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A whole plan without times and its TTFT in seconds from the planning moment.

    spread: its groups were made without regard to nodes, so straddling ones are reckoned slower.
    """

    chunks: Placement
    ttft_s: float
    spread: bool = False

    @property
    def group(self) -> Group:
        """Its last group, which holds all earlier ones."""
        return self.chunks[-1][1]


@dataclass(frozen=True, slots=True)
class Problem:
    """One planning problem: everything that the search reads.

    queue_s: remaining work in seconds, inf for instances that are down. sizes: candidate SP sizes,
    ascending, each with its row of Equation 1; the history's own group size is always among them.
    spread_cost: by which fraction a chunk is slower if nodes were not regarded and its group
    straddles them. Groups by the paper's node rules are reckoned as the model says, as it does.
    """

    tokens: int
    history_tokens: int
    history_group: Group
    queue_s: tuple[float, ...]
    free_tokens: tuple[int, ...]
    capacity_tokens: tuple[int, ...]
    instances_per_node: int
    sizes: tuple[int, ...]
    rows: tuple[Coefficients, ...]
    page_size: int = 1
    min_chunk: int = 1
    improvement_rate: float = 0.0
    spread_cost: float = 0.0

    def row(self, group: Sequence[int], spread: bool = False) -> Coefficients:
        """Equation 1 for this group: its size's row, slower if it is spread over nodes."""
        row = self.rows[self.sizes.index(len(group))]
        if spread and self.spread_cost and straddles(group, self.instances_per_node):
            return row.scaled(1 + self.spread_cost)
        return row

    def free_at(self, group: Group) -> float:
        """When the whole group has done the work it already has."""
        return max((self.queue_s[i] for i in group), default=0.0)

    def placed(self, chunks: Placement) -> int:
        """Tokens in front of the next chunk: cached history and the chunks given."""
        return self.history_tokens + sum(tokens for tokens, _ in chunks)

    def holders(self, chunks: Placement) -> Group:
        """The group that the next one must contain."""
        return chunks[-1][1] if chunks else self.history_group

    def extend(
        self,
        chunks: Placement,
        size: int,
        tokens: int,
        *,
        inside: Sequence[bool] | None = None,
        spread: bool = False,
    ) -> Group | None:
        """The group of `size` for a next chunk of `tokens`, from instances that can hold it.

        `inside` restricts the new members. The members it already has are not checked here.
        """
        need = history_share(self.placed(chunks), size, self.page_size) + shard_share(
            tokens, size, self.page_size
        )
        allowed = [
            q < math.inf and free >= need and (inside is None or inside[i])
            for i, (q, free) in enumerate(zip(self.queue_s, self.free_tokens, strict=True))
        ]
        initial = self.holders(chunks)
        if any(self.queue_s[i] == math.inf for i in initial):
            return None
        return get_group(
            self.queue_s, self.instances_per_node, allowed, initial, size, spread=spread
        )

    def fits(self, chunks: Placement) -> bool:
        """Whether every member has the KV slots that the chunks need (memory.py)."""
        return fits(
            chunks, self.free_tokens, self.page_size, self.history_tokens, self.history_group
        )

    def finish(
        self, chunks: Placement, clock_s: float, group: Group, spread: bool = False
    ) -> Candidate:
        """The plan that runs all that is left as one last chunk on `group`."""
        placed = self.placed(chunks)
        left = self.tokens + self.history_tokens - placed
        end = max(clock_s, self.free_at(group)) + self.row(group, spread).predict(placed, left)
        return Candidate((*chunks, (left, group)), end, spread)

    def fill(
        self, chunks: Placement, group: Group, start_s: float, until_s: float, spread: bool = False
    ) -> int:
        """Algorithm 3: the chunk on `group` that fills [start_s, until_s); 0 if there is none.

        Cut to what the group can hold, rounded down so that the boundary is a multiple of the page
        size in prompt positions; none if shorter than the minimum or if nothing would be left.
        """
        placed = self.placed(chunks)
        longest = min(
            self.row(group, spread).fill(placed, until_s - start_s),
            longest_chunk(self._room(chunks, group), len(group), self.page_size),
            self.tokens,
        )
        length = (placed + int(longest)) // self.page_size * self.page_size - placed
        left = self.tokens + self.history_tokens - placed
        return length if self.min_chunk <= length < left else 0

    def _room(self, chunks: Placement, group: Group) -> int:
        """Slots left for a shard on the group's tightest member, after the history it must hold."""
        history, page = self.history_group, self.page_size
        initial = self.holders(chunks)
        held = held_after(chunks, page, self.history_tokens, len(history))
        cached = (
            history_share(self.history_tokens, len(history), page) if self.history_tokens else 0
        )
        arriving = history_share(self.placed(chunks), len(group), page)
        return min(
            self.free_tokens[i] + (cached if i in history else 0) - held
            if i in initial
            else self.free_tokens[i] - arriving
            for i in group
        )


def check_prompt(prompt: PromptView, pool: PoolView, page_size: int) -> None:
    """PoolViewError if the prompt's history does not fit this pool's numbering or page size."""
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


def usable_sizes(prompt: PromptView, pool: PoolView, sizes: Sequence[int]) -> tuple[int, ...]:
    """The candidate sizes that the pool has instances for and that contain the history's group."""
    held = len(prompt.history_instances)
    up = pool.size if pool.up is None else sum(pool.up)
    usable = tuple(s for s in sizes if held <= s <= up)
    return tuple(sorted({*usable, held})) if held else usable


def make_problem(
    prompt: PromptView,
    pool: PoolView,
    model: LatencyModel,
    sizes: Sequence[int],
    *,
    page_size: int = 1,
    min_chunk: int = 1,
    improvement_rate: float = 0.0,
    spread_cost: float = 0.0,
) -> Problem:
    """Checks prompt and pool against each other and looks the coefficients up."""
    check_prompt(prompt, pool, page_size)
    up = pool.up or (True,) * pool.size
    ordered = usable_sizes(prompt, pool, sizes)
    return Problem(
        tokens=prompt.tokens,
        history_tokens=prompt.history_tokens,
        history_group=prompt.history_instances,
        queue_s=tuple(q if ok else math.inf for q, ok in zip(pool.queue_s, up, strict=True)),
        free_tokens=pool.free_tokens or (NO_LIMIT,) * pool.size,
        capacity_tokens=pool.capacity_tokens or (NO_LIMIT,) * pool.size,
        instances_per_node=pool.instances_per_node,
        sizes=ordered,
        rows=tuple(model.coefficients(s) for s in ordered),
        page_size=page_size,
        min_chunk=min_chunk,
        improvement_rate=improvement_rate,
        spread_cost=spread_cost,
    )


def timed(problem: Problem, candidate: Candidate) -> tuple[PlannedChunk, ...]:
    """Start and end of each chunk: after the chunk before it and when its whole group is free."""
    placed, clock, out = problem.history_tokens, 0.0, []
    for tokens, group in candidate.chunks:
        start = max(clock, problem.free_at(group))
        clock = start + problem.row(group, candidate.spread).predict(placed, tokens)
        placed += tokens
        out.append(PlannedChunk(tokens, group, start, clock))
    return tuple(out)


def instance_seconds(problem: Problem, candidate: Candidate) -> float:
    """What the plan takes from the pool: its members' time from free to the plan's end."""
    return sum(candidate.ttft_s - problem.queue_s[i] for i in candidate.group)
