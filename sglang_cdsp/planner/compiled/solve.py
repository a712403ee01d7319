"""The compiled search's one entry point."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_cdsp.planner.compiled.arrays import (
    ADD,
    BEST,
    BEST_LENGTHS,
    BEST_MEMBERS,
    BEST_WIDTHS,
    CDSP,
    COUNT,
    DEPTHS,
    FLOATS,
    FREE,
    INF,
    INSIDE,
    LIST,
    MANY,
    MARKED,
    MEMBERS,
    NEAR,
    NODE,
    ORDER,
    QUEUE,
    READY,
    REST,
    SCORE,
    SINGLE,
    SIZES,
    WRITE,
    ZERO,
    A,
    Given,
    Prefix,
    inner,
)
from sglang_cdsp.planner.compiled.formulas import history_share, predict
from sglang_cdsp.planner.compiled.groups import join
from sglang_cdsp.planner.compiled.levels import keep, mark, set_bounds
from sglang_cdsp.planner.compiled.search import chains, schedule, single_chunk


@inner
def finish(i: Any, f: Any, g: Given, history: int, plan: Any, times: Any) -> None:
    """Writes the best plan out, each group's new members in index order, with the chunks' times."""
    for node in range(g.k):
        i[REST, node] = 0
    ready, touched, clock, size, placed = 0.0, 0, 0.0, 0, history
    chunks = i[BEST, 0]
    plan[0] = chunks
    at = 1 + 2 * chunks
    for chunk in range(-1, chunks):
        width = i[BEST_WIDTHS, chunk] if chunk >= 0 else g.history_size
        for position in range(size, width):
            x = i[BEST_MEMBERS, position]
            i[INSIDE, x] = 1
            ready = max(ready, f[QUEUE, x])
            touched += i[REST, i[NODE, x]] == 0
            i[REST, i[NODE, x]] = 1
            if chunk < 0:
                # The history's group keeps its order.
                plan[at] = x
                at += 1
        for x in range(g.n):
            if i[INSIDE, x] > 0:
                i[INSIDE, x] = 0
                if chunk >= 0:
                    plan[at] = x
                    at += 1
        size = width
        if chunk >= 0:
            plan[1 + chunk], plan[1 + chunks + chunk] = i[BEST_LENGTHS, chunk], width
            straddles = i[BEST, 1] > 0 and touched > -(-width // g.per_node)
            s = 0
            while i[SIZES, s] < width:
                s += 1
            tokens = i[BEST_LENGTHS, chunk]
            times[chunk, 0] = max(clock, ready)
            clock = times[chunk, 0] + predict(f, g, s, straddles, placed, tokens)
            times[chunk, 1] = clock
            placed += tokens


OPTIONS = {"error_model": "numpy"}
"""What `solve` is to be compiled with, as arguments of numba's `njit`."""


def solve(
    mode: int,
    queue: Any,
    free: Any,
    order: Any,
    sizes: Any,
    coef: Any,
    history_group: Any,
    counts: Any,
    rates: Any,
) -> tuple[float, float, Any, Any]:
    """Plans one prompt. Returns (TTFT, Algorithm 2's TTFT, plan, times); TTFT inf: none can run.

    queue: f8[n] seconds, inf = down. free: i8[n] KV slots. order: i8[n] instances by (queue,
    index). sizes: i8[m] ascending, coef: f8[5, m] rows a, b, c, d, e of Equation 1. counts: i8[6]
    tokens, history tokens, page size, minimum chunk, instances per node, 1 if no instance's
    memory can matter. rates: f8[4] improvement rate, price, spread cost, rate from which
    CDSP is PAPER. plan: i8, the number of chunks c, their c lengths, their c sizes, then the
    members. times: f8[m + 1, 2] start and end of each chunk.
    """
    n, m = queue.shape[0], sizes.shape[0]
    tokens, history, per_node = counts[0], counts[1], counts[4]
    k = (n - 1) // per_node + 1
    i = np.zeros((DEPTHS + 3 * (m + 3), max(k * per_node, m + 2, 8)), np.int64)
    f = np.empty((FLOATS + m + 1, max(n, m, 5)), np.float64)
    for s in range(m):
        i[SIZES, s] = sizes[s]
        for row in range(5):
            f[A + row, s] = coef[row, s]
    for x in range(n):
        i[ORDER, x], i[NODE, x], i[FREE, x], f[QUEUE, x] = (
            order[x],
            x // per_node,
            free[x],
            queue[x],
        )
    for x in range(4):
        f[SCORE, x] = INF
    roomy = counts[5] != 0
    g = Given(
        n,
        k,
        m,
        history + tokens,
        history_group.shape[0],
        counts[2],
        counts[3],
        per_node,
        rates[0],
        rates[1],
        rates[2],
        roomy,
        roomy and k == 1,
    )
    plan = np.zeros(3 + 2 * m + n, np.int64)
    times = np.zeros((m + 1, 2), np.float64)
    cached = history_share(history, g.history_size, g.page) if history > 0 else 0
    ready, slack, queues = 0.0, MANY, 0.0
    for at in range(g.history_size):
        x = history_group[at]
        i[MEMBERS, at] = x
        ready = max(ready, queue[x])
        slack = min(slack, free[x] + cached)
        queues += queue[x]
    p = Prefix(ZERO, g.history_size, 0.0, ready, history, cached, slack, queues)
    if ready == INF or m == 0:
        return INF, INF, plan, times
    mark(i, ZERO, p.size, ADD)
    set_bounds(i, f, g, p)
    for at in range(n):
        x = i[ORDER, at]
        if i[MARKED, x] == 0 and queue[x] < INF:
            node = i[NODE, x]
            i[DEPTHS + LIST, node * per_node + i[DEPTHS + COUNT, node]] = x
            i[DEPTHS + COUNT, node] += 1
    if mode == SINGLE:
        base, ttft = single_chunk(i, f, g, p, ZERO, m)
        if base >= 0:
            f[SCORE, 2] = ttft
            join(i, f, g, p, p.size, base, tokens, ZERO, NEAR, WRITE)
            keep(i, f, g, p, i[SIZES, base], ttft, ttft, g.lazy)
    else:
        schedule(i, f, g, p)
    if mode == CDSP and f[SCORE, 0] < INF and rates[0] < rates[3]:
        f[SCORE, 3] = f[SCORE, 0]
        # A plan that ends on a size takes at least its step cost once the size is free.
        top = m
        while top > 0 and f[READY, top - 1] + f[A, top - 1] >= f[SCORE, 3]:
            top -= 1
        # The shortest queues first: their plans are good bounds for the node rules' many chains.
        for family in range(min(k, 2)):
            for s in range(top):
                if i[SIZES, s] >= p.size:
                    chains(i, f, g, p, s, top, k > 1 and family == 0)
    if f[SCORE, 0] < INF:
        finish(i, f, g, history, plan, times)
    return f[SCORE, 0], f[SCORE, 2], plan, times
