"""Equation 1, Algorithm 3 and the memory rule (memory.py), compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_cdsp.planner.compiled.arrays import SIZES, A, B, C, D, E, Given, Joined, Prefix, inner


@inner
def history_share(tokens: int, size: int, page: int) -> int:
    """memory.history_share."""
    pages = -(-tokens // page)
    return -(-pages // size) * page


@inner
def shard_share(tokens: int, size: int, page: int) -> int:
    """memory.shard_share."""
    pages = -(-tokens // page)
    return pages * page if size == 1 else 2 * -(-pages // (2 * size)) * page


@inner
def predict(f: Any, g: Given, s: int, straddles: bool, placed: int, tokens: int) -> float:
    """Equation 1 in seconds: `tokens` after `placed` on a group of sizes[s]."""
    x = 1.0 + g.spread_cost if straddles else 1.0
    a, b, c, d = f[A, s] * x, f[B, s] * x, f[C, s] * x, f[D, s] * x
    return a + f[E, s] * x * placed + tokens * (b + c * placed + d * tokens)


@inner
def fill_length(
    i: Any, f: Any, g: Given, p: Prefix, s: int, group: Joined, start: float, until: float
) -> int:
    """Algorithm 3, cut to the group's memory and to a page boundary; 0 = no legal length."""
    x = 1.0 + g.spread_cost if group.straddles else 1.0
    spare = until - start - (f[A, s] * x + f[E, s] * x * p.placed)
    if spare <= 0:
        return 0
    slope = f[B, s] * x + f[C, s] * x * p.placed
    exact = 2 * spare / (slope + np.sqrt(slope * slope + 4 * (f[D, s] * x) * spare))
    left = g.total - p.placed
    length = int(min(exact, float(left)))
    size = i[SIZES, s]
    if not g.roomy:
        room = group.least - (history_share(p.placed, size, g.page) if size > p.size else 0)
        pages = max(min(room, p.slack - p.held), 0) // g.page
        length = min(length, (pages if size == 1 else pages // 2 * 2 * size) * g.page)
    length = (p.placed + length) // g.page * g.page - p.placed
    return length if g.min_chunk <= length < left else 0
