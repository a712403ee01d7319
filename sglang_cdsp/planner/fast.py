"""The compiled search behind the policies: prompt and pool in, plan out, in microseconds.

`compiled_search` compiles it, or loads it from numba's cache. Every `FastPlanner` has it from the
start, so no request pays for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_cdsp.planner import compiled
from sglang_cdsp.planner.compiled.keep import compile_kept
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.problem import NO_LIMIT, check_prompt, usable_sizes
from sglang_cdsp.planner.search import SATURATED_RATE, SMALLEST_RATE, price
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView, PromptView

Array = np.ndarray[Any, Any]
Search = Callable[..., tuple[float, float, Array, Array]]
"""`compiled.solve`, compiled."""


@dataclass(frozen=True)
class Table:
    """Equation 1 of the usable SP sizes, as the compiled search reads it."""

    sizes: Array
    coefficients: Array


@dataclass(frozen=True)
class Settings:
    """The options of a search that do not change from prompt to prompt; see PolicyOptions.

    price: what an instance-second costs in seconds of TTFT, in place of what the improvement rate
    asks (search.plan_priced); None = the improvement rate decides.
    """

    page_size: int
    min_chunk: int
    improvement_rate: float
    spread_cost: float
    price: float | None = None

    def rates(self) -> tuple[float, float, float, float]:
        """The compiled search's `rates`."""
        if self.price is None:
            rate = self.improvement_rate
            return rate, price(rate), self.spread_cost, SATURATED_RATE
        return SMALLEST_RATE, self.price, self.spread_cost, math.inf


@dataclass(frozen=True, slots=True)
class Seen:
    """A pool as the compiled search reads it; a prompt with several starts is planned in one pool.

    Attributes:
        queue: seconds by instance, infinity for those that are down.
        order: the instances by queue, then by number.
        free: KV slots by instance.
        least_free: the fewest of them.
    """

    pool: PoolView
    queue: Array
    order: Array
    free: Array
    least_free: int


class FastPlanner:
    """One of the compiled searches for one latency model; keeps tables, and the last pool."""

    def __init__(
        self, mode: int, model: LatencyModel, policy: str, search: Search | None = None
    ) -> None:
        """`search` is `compiled_search()` if not given."""
        self.model = model
        self._solve = search or compiled_search()
        self._mode = mode
        self._policy = policy
        self._tables: dict[tuple[int, ...], Table] = {}
        self._last: Seen | None = None
        self._no_history = np.empty(0, np.int64)

    def plan(
        self, prompt: PromptView, pool: PoolView, sizes: tuple[int, ...], settings: Settings
    ) -> Plan | None:
        """The plan, or None if no group can hold the prompt now."""
        page = settings.page_size
        check_prompt(prompt, pool, page)
        table = self._table(usable_sizes(prompt, pool, sizes))
        seen = self._seen(pool)
        total = prompt.tokens + prompt.history_tokens
        roomy = seen.least_free >= total + (2 * pool.size + 2) * page
        history = prompt.history_instances
        ttft, single, numbers, times = self._solve(
            self._mode,
            seen.queue,
            seen.free,
            seen.order,
            table.sizes,
            table.coefficients,
            np.array(history, np.int64) if history else self._no_history,
            np.array(
                (
                    prompt.tokens,
                    prompt.history_tokens,
                    page,
                    settings.min_chunk,
                    pool.instances_per_node,
                    roomy,
                )
            ),
            np.array(settings.rates()),
        )
        if ttft == math.inf:
            return None
        found: list[int] = numbers.tolist()
        count = found[0]
        members = found[1 + 2 * count :]
        chunks = tuple(
            PlannedChunk(found[1 + at], tuple(members[: found[1 + count + at]]), start, end)
            for at, (start, end) in enumerate(times[:count].tolist())
        )
        return Plan(chunks, ttft, self._policy, single if settings.price is None else None)

    def _seen(self, pool: PoolView) -> Seen:
        """The arrays of a pool; views do not change, so the same one has the same arrays."""
        if self._last is not None and self._last.pool is pool:
            return self._last
        queue = np.array(pool.queue_s)
        if pool.up is not None:
            queue[~np.array(pool.up)] = math.inf
        if pool.free_tokens is None:
            free, least = np.full(pool.size, NO_LIMIT), NO_LIMIT
        else:
            free, least = np.array(pool.free_tokens, np.int64), min(pool.free_tokens)
        self._last = Seen(pool, queue, queue.argsort(kind="stable"), free, least)
        return self._last

    def _table(self, sizes: tuple[int, ...]) -> Table:
        table = self._tables.get(sizes)
        if table is None:
            rows = [self.model.coefficients(size) for size in sizes]
            numbers = np.array(
                [[getattr(row, name) for row in rows] for name in ("a", "b", "c", "d", "e")]
            )
            table = self._tables[sizes] = Table(np.array(sizes, np.int64), numbers)
        return table


@functools.cache
def compiled_search() -> Search:
    """The search, compiled once a process: from numba's cache, or anew, which takes 10 s or so."""
    return compile_kept(compiled.solve, compiled.OPTIONS, _run_once)


def _run_once(search: Search) -> None:
    """Plans one token, which compiles the search or loads it."""
    model = LatencyModel(((1, Coefficients(0.0, 1.0, 0.0, 0.0)),))
    planner = FastPlanner(compiled.CDSP, model, "warm-up", search)
    planner.plan(PromptView("warm-up", 1), PoolView((0.0,), None, 1), (1,), Settings(1, 1, 0, 0))
