"""Algorithms 1 and 2 (paper.py) and the chains of the whole pool (search.py), compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_cdsp.planner.compiled.arrays import (
    BEST,
    DEPTHS,
    DRY,
    INF,
    INSIDE,
    LEAST_A,
    LEVEL,
    LIST,
    MEMBERS,
    NEAR,
    READY,
    SCORE,
    SIZES,
    WRITE,
    ZERO,
    Given,
    Joined,
    Prefix,
    inner,
)
from sglang_cdsp.planner.compiled.formulas import predict, shard_share
from sglang_cdsp.planner.compiled.groups import join
from sglang_cdsp.planner.compiled.levels import (
    enter,
    fill_chunk,
    hopeless,
    keep,
    leave,
    level_at,
    lower_bound,
    push,
)


@inner
def single_chunk(i: Any, f: Any, g: Given, p: Prefix, low: int, top: int) -> tuple[int, float]:
    """Algorithm 2: position of the size chosen (-1: none) and its TTFT."""
    left = g.total - p.placed
    best, best_ttft = -1, INF
    for s in range(low, top):
        size = i[SIZES, s]
        if size < p.size:
            continue
        if p.size > 0 and p.held + shard_share(left, size, g.page) > p.slack:
            continue
        group = join(i, f, g, p, p.size, s, left, p.depth, NEAR, DRY)
        if group.ready == INF:
            continue
        start = max(p.clock, max(p.ready, group.ready))
        ttft = start + predict(f, g, s, group.straddles, p.placed, left)
        if best < 0 or ttft - p.clock < (best_ttft - p.clock) * (1 - g.rate):
            best, best_ttft = s, ttft
    return best, best_ttft


@inner
def restrict(i: Any, g: Given, p: Prefix, size: int) -> None:
    """The next depth may only use MEMBERS[:size]: keeps those of this depth's lists."""
    row = DEPTHS + 3 * p.depth + LIST
    to = row + 3
    for at in range(p.size, size):
        i[INSIDE, i[MEMBERS, at]] = 1
    for node in range(g.k):
        start, kept = node * g.per_node, 0
        for at in range(start, start + i[row + 1, node]):
            x = i[row, at]
            if i[INSIDE, x] > 0:
                i[INSIDE, x] = 0
                i[to, start + kept] = x
                kept += 1
        i[to + 1, node] = kept


@inner
def base_plan(i: Any, f: Any, g: Given, p: Prefix, low: int, top: int) -> int:
    """Algorithm 2 at a level of Algorithm 1: keeps its plan if it is the best so far.

    Returns the position of its size, with the next depth's lists restricted to its group; -1 if
    no chunk can be put in front.
    """
    if lower_bound(f, g, p.placed, p.clock, low, top) + f[LEAST_A, low] >= f[SCORE, 0]:
        return -1
    base, ttft = single_chunk(i, f, g, p, low, top)
    if base < 0:
        return -1
    size = i[SIZES, base]
    group = join(i, f, g, p, p.size, base, g.total - p.placed, p.depth, NEAR, WRITE)
    if p.depth == 0:
        f[SCORE, 2] = ttft
    if ttft < f[SCORE, 0]:
        cost = ttft + g.price * (size * ttft - (p.queues + group.queues))
        keep(i, f, g, p, size, ttft, cost, g.lazy)
    if low >= base or size <= p.size:
        return -1
    if not g.lazy:
        restrict(i, g, p, size)
    return base


@inner
def schedule(i: Any, f: Any, g: Given, first: Prefix) -> None:
    """Algorithm 1, its recursion as a loop over levels: keeps the fastest plan."""
    base = np.empty(g.m + 1, np.int64)
    base[0] = base_plan(i, f, g, first, ZERO, g.m)
    push(i, f, first, ZERO)
    depth = ZERO
    while depth >= 0:
        p, s, larger = level_at(i, f, depth)
        if larger == 0:
            if s >= base[depth]:
                depth -= 1
                continue
            if i[SIZES, s] >= p.size:
                group = join(i, f, g, p, p.size, s, g.min_chunk, depth + 1, NEAR, WRITE)
                start = max(p.clock, max(p.ready, group.ready))
                if group.ready < INF and not hopeless(
                    f, g, p, s, start, base[depth] + 1, f[SCORE, 0]
                ):
                    enter(i, f, g, p, s, group, g.lazy)
                    continue
            i[DEPTHS + 3 * depth + LEVEL, 4] = s + 1
        elif larger > base[depth] or f[READY, larger] + f[LEAST_A, larger] >= f[SCORE, 0]:
            leave(i, p, s, g.lazy)
        else:
            rest = fill_chunk(i, f, g, p, s, larger, depth + 1, NEAR)
            if rest.size > 0:
                base[depth + 1] = base_plan(i, f, g, rest, larger, base[depth] + 1)
                if base[depth + 1] >= 0:
                    depth += 1
                    push(i, f, rest, larger)


@inner
def last_chunk(i: Any, f: Any, g: Given, p: Prefix, s: int, spread: bool, lazy: bool) -> Joined:
    """The plan with all that is left on sizes[s]: keeps it if it is below the bound and cheapest.

    Returns the group for a chunk that is not the last.
    """
    size, left = i[SIZES, s], g.total - p.placed
    group = join(i, f, g, p, p.size, s, left, ZERO, spread, WRITE)
    fits = p.size == 0 or p.held + shard_share(left, size, g.page) <= p.slack
    if group.ready < INF and fits:
        start = max(p.clock, max(p.ready, group.ready))
        ttft = start + predict(f, g, s, group.straddles, p.placed, left)
        cost = ttft + g.price * (size * ttft - (p.queues + group.queues))
        if ttft < f[SCORE, 3] and cost < f[SCORE, 1]:
            keep(i, f, g, p, size, ttft, cost, lazy)
            i[BEST, 1] = spread
            if g.price == 0:
                f[SCORE, 3] = ttft
    if g.roomy:
        return group
    return join(i, f, g, p, p.size, s, g.min_chunk, ZERO, spread, WRITE)


@inner
def chains(
    i: Any, f: Any, g: Given, first: Prefix, start_size: int, top: int, spread: bool
) -> None:
    """Every chain from sizes[start_size] to at most sizes[top - 1]; keeps the cheapest plan that
    is faster than SCORE[3]."""
    lazy = g.lazy or (spread and g.roomy)
    push(i, f, first, start_size)
    depth = ZERO
    while depth >= 0:
        p, s, larger = level_at(i, f, depth)
        if larger == 0:
            group = last_chunk(i, f, g, p, s, spread, lazy)
            start = max(p.clock, max(p.ready, group.ready))
            if group.ready == INF or hopeless(f, g, p, s, start, top, f[SCORE, 3]):
                depth -= 1
            else:
                enter(i, f, g, p, s, group, lazy)
        elif larger >= top or f[READY, larger] + f[LEAST_A, larger] >= f[SCORE, 3]:
            leave(i, p, s, lazy)
            depth -= 1
        else:
            rest = fill_chunk(i, f, g, p, s, larger, ZERO, spread)
            if rest.size > 0:
                depth += 1
                push(i, f, rest, larger)
