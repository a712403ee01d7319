"""The levels of the compiled search: chunks placed, their bounds, and the path so far."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_cdsp.planner.compiled.arrays import (
    ADD,
    BEST,
    BEST_LENGTHS,
    BEST_MEMBERS,
    BEST_WIDTHS,
    DEPTHS,
    DRY,
    FLOATS,
    HOLDING,
    INF,
    LEAST_A,
    LEAST_B,
    LEAST_C,
    LEAST_D,
    LENGTHS,
    LEVEL,
    MARKED,
    MEMBERS,
    NODE,
    ORDER,
    QUEUE,
    QUEUES,
    READY,
    REMOVE,
    REST,
    SCORE,
    SIZES,
    STRADDLES,
    WIDTHS,
    A,
    B,
    C,
    D,
    Given,
    Joined,
    Prefix,
    inner,
)
from sglang_cdsp.planner.compiled.formulas import fill_length, history_share, predict, shard_share
from sglang_cdsp.planner.compiled.groups import join, write_shortest


@inner
def mark(i: Any, first: int, last: int, sign: int) -> None:
    """Adds (sign 1) or removes (-1) MEMBERS[first:last] to or from the group placed so far."""
    for at in range(first, last):
        x = i[MEMBERS, at]
        i[MARKED, x] += sign
        i[HOLDING, i[NODE, x]] += sign


@inner
def keep(
    i: Any, f: Any, g: Given, p: Prefix, size: int, ttft: float, cost: float, lazy: bool
) -> None:
    """Keeps the path with all that is left on MEMBERS[:size] as the best plan."""
    if lazy:
        write_shortest(i, g, size)
    for at in range(p.depth):
        i[BEST_LENGTHS, at] = i[LENGTHS, at]
        i[BEST_WIDTHS, at] = i[WIDTHS, at]
    i[BEST_LENGTHS, p.depth] = g.total - p.placed
    i[BEST_WIDTHS, p.depth] = size
    i[BEST, 0] = p.depth + 1
    for at in range(size):
        i[BEST_MEMBERS, at] = i[MEMBERS, at]
    f[SCORE, 0] = ttft
    f[SCORE, 1] = cost


@inner
def set_bounds(i: Any, f: Any, g: Given, p: Prefix) -> None:
    """Per size: the earliest that any group of it is free; the least b, c, d of the sizes up to
    it; the least a from it on; queue sum and straddling of its group of shortest queues."""
    at, ready, queues, position, touched = p.size, p.ready, p.queues, 0, 0
    b, c, d = INF, INF, INF
    for node in range(g.k):
        i[REST, node] = i[HOLDING, node]
        touched += i[HOLDING, node] > 0
    for s in range(g.m):
        while at < i[SIZES, s] and position < g.n:
            x = i[ORDER, position]
            position += 1
            if i[MARKED, x] == 0:
                touched += i[REST, i[NODE, x]] == 0
                i[REST, i[NODE, x]] = 1
                ready = max(ready, f[QUEUE, x])
                queues += f[QUEUE, x]
                at += 1
        b, c = min(b, f[B, s]), min(c, f[C, s])
        d = min(d, min(f[D, s], f[C, s] / 2))
        f[READY, s], f[LEAST_B, s], f[LEAST_C, s], f[LEAST_D, s] = ready, b, c, d
        straddles = g.spread_cost > 0 and touched > -(-i[SIZES, s] // g.per_node)
        f[QUEUES, s], f[STRADDLES, s] = queues, 1.0 if straddles else 0.0
    a = INF
    for back in range(g.m):
        s = g.m - 1 - back
        a = min(a, f[A, s])
        f[LEAST_A, s] = a


@inner
def lower_bound(f: Any, g: Given, placed: int, start: float, low: int, top: int) -> float:
    """No plan whose next chunk has one of sizes[low:top] and works from `start` on is faster.

    As if every size were free as early as any group of it, work went on without a pause at the
    best rates so far, and no chunk had a step cost.
    """
    clock, done, s = max(start, f[READY, low]), float(placed), low
    while True:
        while s + 1 < top and f[READY, s + 1] <= clock:
            s += 1
        left = g.total - done
        b, d = f[LEAST_B, s] + f[LEAST_C, s] * done, f[LEAST_D, s]
        need = left * (b + d * left)
        if s + 1 >= top or clock + need <= f[READY, s + 1]:
            return clock + need
        spare = f[READY, s + 1] - clock
        done += 2 * spare / (b + np.sqrt(b * b + 4 * d * spare))
        clock = f[READY, s + 1]


@inner
def hopeless(f: Any, g: Given, p: Prefix, s: int, start: float, top: int, best: float) -> bool:
    """Whether no chunk on sizes[s] from `start`, but the last, can lead to a TTFT below `best`.

    Such a chunk has its own step cost first, and the last one has its own at the end.
    """
    if s + 1 >= top:
        return True
    least = lower_bound(f, g, p.placed, start + f[A, s], s, top) + f[LEAST_A, s + 1]
    return least >= best


@inner
def push(i: Any, f: Any, p: Prefix, s: int) -> None:
    """Starts a level of the search: its prefix, and the size at which it begins."""
    x, y = DEPTHS + 3 * p.depth + LEVEL, FLOATS + p.depth
    f[y, 0], f[y, 1], f[y, 2] = p.clock, p.ready, p.queues
    i[x, 0], i[x, 1], i[x, 2], i[x, 3], i[x, 4], i[x, 5] = p.size, p.placed, p.held, p.slack, s, 0


@inner
def level_at(i: Any, f: Any, depth: int) -> tuple[Prefix, int, int]:
    """The prefix of a level, the size it is at, and the next larger one to try (0: none yet)."""
    x, y = DEPTHS + 3 * depth + LEVEL, FLOATS + depth
    p = Prefix(depth, i[x, 0], f[y, 0], f[y, 1], i[x, 1], i[x, 2], i[x, 3], f[y, 2])
    return p, i[x, 4], i[x, 5]


@inner
def enter(i: Any, f: Any, g: Given, p: Prefix, s: int, group: Joined, lazy: bool) -> None:
    """Puts the level's group for sizes[s] onto the path."""
    x, y = DEPTHS + 3 * p.depth + LEVEL, FLOATS + p.depth
    f[y, 3], f[y, 4] = group.ready, group.queues
    i[x, 4], i[x, 5], i[x, 6], i[x, 7] = s, s + 1, group.straddles, group.least
    if not lazy:
        mark(i, p.size, i[SIZES, s], ADD)


@inner
def leave(i: Any, p: Prefix, s: int, lazy: bool) -> None:
    """Takes the level's group for sizes[s] off the path and goes to the next size."""
    x = DEPTHS + 3 * p.depth + LEVEL
    i[x, 4], i[x, 5] = s + 1, 0
    if not lazy:
        mark(i, p.size, i[SIZES, s], REMOVE)


@inner
def fill_chunk(
    i: Any, f: Any, g: Given, p: Prefix, s: int, larger: int, depth: int, spread: bool
) -> Prefix:
    """The prefix after the level's chunk that fills the time until sizes[larger] is free.

    Its size is 0 if there is no legal chunk.
    """
    x, y = DEPTHS + 3 * p.depth + LEVEL, FLOATS + p.depth
    group = Joined(f[y, 3], i[x, 6] != 0, i[x, 7], f[y, 4])
    i[x, 5] = larger + 1
    size = i[SIZES, s]
    following = join(i, f, g, p, size, larger, 0, depth, spread, DRY)
    ready = max(p.ready, group.ready)
    start = max(p.clock, ready)
    length = 0
    if following.ready < INF:
        length = fill_length(i, f, g, p, s, group, start, max(ready, following.ready))
    if length == 0:
        return Prefix(p.depth, 0, p.clock, p.ready, p.placed, p.held, p.slack, p.queues)
    i[LENGTHS, p.depth], i[WIDTHS, p.depth] = length, size
    held = history_share(p.placed, size, g.page) if size > p.size else p.held
    return Prefix(
        p.depth + 1,
        size,
        start + predict(f, g, s, group.straddles, p.placed, length),
        ready,
        p.placed + length,
        held + shard_share(length, size, g.page),
        min(p.slack, group.least),
        p.queues + group.queues,
    )
