"""The compiled search behind the policies: prompt and pool in, plan out, in microseconds.

`warm_up` compiles the search, or loads it from numba's cache; whoever makes a policy calls it, so
that no request pays for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.problem import NO_LIMIT, check_prompt, usable_sizes
from sglang_cdsp.planner.search import SATURATED_RATE, SMALLEST_RATE, price
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView, PromptView

try:
    from sglang_cdsp.planner import compiled
except RuntimeError as error:  # numba finds no folder to cache in
    raise PlannerError(
        f"the planner cannot be compiled: {error}; set NUMBA_CACHE_DIR to a writable folder"
    ) from error

Array = np.ndarray[Any, Any]


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


class FastPlanner:
    """One of the compiled searches for one latency model; keeps tables and constant arrays."""

    def __init__(self, mode: int, model: LatencyModel, policy: str) -> None:
        self.model = model
        self._mode = mode
        self._policy = policy
        self._tables: dict[tuple[int, ...], Table] = {}
        self._limitless: dict[int, Array] = {}
        self._no_history = np.empty(0, np.int64)

    def plan(
        self, prompt: PromptView, pool: PoolView, sizes: tuple[int, ...], settings: Settings
    ) -> Plan | None:
        """The plan, or None if no group can hold the prompt now."""
        page = settings.page_size
        check_prompt(prompt, pool, page)
        table = self._table(usable_sizes(prompt, pool, sizes))
        queue = np.array(pool.queue_s)
        if pool.up is not None:
            queue[~np.array(pool.up)] = math.inf
        n = len(queue)
        total = prompt.tokens + prompt.history_tokens
        free, roomy = self._free(pool, total + (2 * n + 2) * page)
        history = prompt.history_instances
        ttft, single, numbers, times = compiled.solve(
            self._mode,
            queue,
            free,
            queue.argsort(kind="stable"),
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

    def _free(self, pool: PoolView, enough: int) -> tuple[Array, bool]:
        if pool.free_tokens is not None:
            return np.array(pool.free_tokens, np.int64), min(pool.free_tokens) >= enough
        n = pool.size
        if n not in self._limitless:
            self._limitless[n] = np.full(n, NO_LIMIT)
        return self._limitless[n], True

    def _table(self, sizes: tuple[int, ...]) -> Table:
        table = self._tables.get(sizes)
        if table is None:
            rows = [self.model.coefficients(size) for size in sizes]
            numbers = np.array(
                [[getattr(row, name) for row in rows] for name in ("a", "b", "c", "d")]
            )
            table = self._tables[sizes] = Table(np.array(sizes, np.int64), numbers)
        return table


def warm_up(model: LatencyModel) -> None:
    """Makes the compiled search ready to run: compiles it the first time, loads it after that."""
    _discard_stale_code()
    size = model.sp_sizes[0]
    FastPlanner(compiled.CDSP, model, "warm-up").plan(
        PromptView("warm-up", 1), PoolView((0.0,) * size, None, size), (size,), Settings(1, 1, 0, 0)
    )


def _discard_stale_code() -> None:
    """Drops compiled code that is older than any of its source files.

    numba itself only looks at the file of `solve`, not at those of the functions inside it.
    """
    sources = Path(compiled.__file__).parent.glob("*.py")
    newest = max(source.stat().st_mtime for source in sources)
    for index in Path(compiled.solve.stats.cache_path).glob("solve.solve-*.nbi"):
        if index.stat().st_mtime < newest:
            index.unlink(missing_ok=True)
