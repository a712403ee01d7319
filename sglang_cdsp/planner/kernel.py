"""The searches of `paper.py` and `search.py`, compiled with numba: microseconds, not milliseconds.

Same steps and the same arithmetic, so both give the same plan (tests/planner/test_kernel.py).
Groups are nested, so one stack serves all depths: `members[:size]` is the group placed so far, and
`marked` and `holding` say which instances and how many per node it has. The compiled code is
cached beside this file; `fast.warm_up` loads it before the first request. All of it is in one
file because numba does not see changes in another one's cached functions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

SINGLE, PAPER, CDSP = 0, 1, 2
"""Algorithm 2 alone; Algorithm 1; the chains of the whole pool."""

_inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
"""For functions that only `solve` calls: no wrappers and no cache of their own, so that the first
compilation is short."""

INF = np.inf
MANY = np.int64(1) << 62
ZERO, ADD, REMOVE, NEAR = np.int64(0), np.int64(1), np.int64(-1), np.bool_(False)
"""Typed constants: numba compiles a function anew for each literal that it is called with."""


class Arrays(NamedTuple):
    """A planning problem and scratch space, for n instances, m sizes and k nodes."""

    queue: Any  # f8[n] seconds, inf = down
    free: Any  # i8[n] KV slots
    order: Any  # i8[n] instances by (queue, index)
    node: Any  # i8[n]
    sizes: Any  # i8[m]
    coef: Any  # f8[m, 4] a, b, c, d
    members: Any  # i8[n] the stack of groups
    marked: Any  # u1[n] in the group placed so far
    holding: Any  # i8[k] its members per node
    seen: Any  # i8[k] scratch of _extend
    masks: Any  # u1[m + 2, n] what Algorithm 1 may use at each depth
    floats: Any  # f8[m + 1, 5] the levels of the search, see _push and _enter
    ints: Any  # i8[m + 1, 8]
    lengths: Any  # i8[m + 1] tokens of the chunks placed
    widths: Any  # i8[m + 1] their SP sizes
    best: Any  # i8[3 + 2 m + n] of the best plan: chunks, tokens, sizes, members
    times: Any  # f8[m + 1, 2] start and end of each chunk of the best plan
    score: Any  # f8[4] TTFT of best, its cost, TTFT of Algorithm 2, TTFT to stay below


class Given(NamedTuple):
    """The scalars of a planning problem. `roomy`: no instance's memory can matter."""

    total: int  # history and prompt, tokens
    page: int
    min_chunk: int
    per_node: int
    rate: float
    price: float
    spread_cost: float
    roomy: bool


class Prefix(NamedTuple):
    """The chunks placed so far, as the next one sees them."""

    depth: int  # how many
    size: int  # members of the last group (at first, of the history's)
    clock: float  # end of the last chunk
    ready: float  # when all members have done their earlier work
    placed: int  # tokens in front of the next chunk
    held: int  # KV slots of the prompt on each member
    slack: int  # least (free slots + slots already held as cached history) of a member
    queues: float  # sum of the members' queue times


class Joined(NamedTuple):
    """A group made by _extend: when it is free, and what its new members bring."""

    ready: float  # inf: too few can join
    straddles: bool
    least: int  # least free slots of a new member
    queues: float  # sum of the new members' queue times


@_inner
def _history_share(tokens: int, size: int, page: int) -> int:
    pages = -(-tokens // page)
    return -(-pages // size) * page


@_inner
def _shard_share(tokens: int, size: int, page: int) -> int:
    pages = -(-tokens // page)
    return pages * page if size == 1 else 2 * -(-pages // (2 * size)) * page


@_inner
def _predict(w: Arrays, g: Given, s: int, straddles: bool, placed: int, tokens: int) -> float:
    f = 1.0 + g.spread_cost if straddles else 1.0
    a, b, c, d = w.coef[s, 0] * f, w.coef[s, 1] * f, w.coef[s, 2] * f, w.coef[s, 3] * f
    return a + tokens * (b + c * placed + d * tokens)


@_inner
def _fill(w: Arrays, g: Given, p: Prefix, s: int, group: Joined, start: float, until: float) -> int:
    """Algorithm 3, cut to the group's memory and to a page boundary; 0 = no legal length."""
    f = 1.0 + g.spread_cost if group.straddles else 1.0
    spare = until - start - w.coef[s, 0] * f
    if spare <= 0:
        return 0
    slope = w.coef[s, 1] * f + w.coef[s, 2] * f * p.placed
    exact = 2 * spare / (slope + np.sqrt(slope * slope + 4 * (w.coef[s, 3] * f) * spare))
    left = g.total - p.placed
    length = int(min(exact, float(left)))
    size = w.sizes[s]
    if not g.roomy:
        room = group.least - (_history_share(p.placed, size, g.page) if size > p.size else 0)
        pages = max(min(room, p.slack - p.held), 0) // g.page
        length = min(length, (pages if size == 1 else pages // 2 * 2 * size) * g.page)
    length = (p.placed + length) // g.page * g.page - p.placed
    return length if g.min_chunk <= length < left else 0


@_inner
def _eligible(w: Arrays, i: int, need: int, row: int) -> bool:
    return w.masks[row, i] and w.free[i] >= need and w.queue[i] < INF


@_inner
def _extend(
    w: Arrays, g: Given, size: int, target: int, need: int, row: int, spread: bool
) -> Joined:
    """GetGroup: writes the new members to members[size:target] (groups.py)."""
    nodes = w.holding.shape[0]
    touched, at, ready, least, queues = 0, size, 0.0, MANY, 0.0
    for node in range(nodes):
        w.seen[node] = 0
        touched += w.holding[node] > 0
    if spread or size > 0:
        for i in w.order:
            if at == target:
                break
            node = w.node[i]
            if w.marked[i] or not (spread or w.holding[node]) or not _eligible(w, i, need, row):
                continue
            if w.holding[node] == 0:
                touched += w.seen[node] == 0
                w.seen[node] = 1
            w.members[at] = i
            at += 1
            ready = max(ready, w.queue[i])
            least = min(least, w.free[i])
            queues += w.queue[i]
    while at < target and not spread:
        # The first node to reach the number missing has the least s-th shortest queue.
        rest, chosen, found = target - at, -1, 0
        for node in range(nodes):
            w.seen[node] = min(w.seen[node], 0)
        for i in w.order:
            node = w.node[i]
            if w.holding[node] == 0 and w.seen[node] >= 0 and _eligible(w, i, need, row):
                w.seen[node] += 1
                found += 1
                if w.seen[node] == rest:
                    chosen = node
                    break
        if found == 0:
            break
        if chosen < 0:
            # No node holds them all: take whole the node that is wholly free first.
            for i in w.order:
                node = w.node[i]
                if w.holding[node] == 0 and w.seen[node] > 0 and _eligible(w, i, need, row):
                    w.seen[node] -= 1
                    if w.seen[node] == 0:
                        chosen = node
                        break
        for i in w.order:
            if at == target:
                break
            if w.node[i] == chosen and _eligible(w, i, need, row):
                w.members[at] = i
                at += 1
                ready = max(ready, w.queue[i])
                least = min(least, w.free[i])
                queues += w.queue[i]
        w.seen[chosen] = -1
        touched += 1
    if at < target:
        return Joined(INF, False, 0, 0.0)
    straddles = g.spread_cost > 0 and touched > -(-target // g.per_node)
    return Joined(ready, straddles, least, queues)


@_inner
def _mark(w: Arrays, first: int, last: int, sign: int) -> None:
    """Adds (sign 1) or removes (-1) members[first:last] to or from the group placed so far."""
    for at in range(first, last):
        i = w.members[at]
        w.marked[i] = sign > 0
        w.holding[w.node[i]] += sign


@_inner
def _need(g: Given, p: Prefix, size: int, tokens: int) -> int:
    """Free slots that an instance needs to join a group of `size` for a chunk of `tokens`."""
    if g.roomy:
        return 0
    return _history_share(p.placed, size, g.page) + _shard_share(tokens, size, g.page)


@_inner
def _keep(w: Arrays, g: Given, p: Prefix, size: int, ttft: float, cost: float) -> None:
    """Keeps the path with all that is left on members[:size] as the best plan."""
    m = w.sizes.shape[0]
    w.best[0] = p.depth + 1
    for at in range(p.depth):
        w.best[1 + at] = w.lengths[at]
        w.best[2 + m + at] = w.widths[at]
    w.best[1 + p.depth] = g.total - p.placed
    w.best[2 + m + p.depth] = size
    for at in range(size):
        w.best[3 + 2 * m + at] = w.members[at]
    w.score[0] = ttft
    w.score[1] = cost


@_inner
def _single_chunk(w: Arrays, g: Given, p: Prefix, low: int, row: int) -> tuple[int, float, float]:
    """Algorithm 2: position of the size chosen (-1: none), its TTFT, and the group's queue sum."""
    left = g.total - p.placed
    best, best_ttft, best_queues = -1, INF, 0.0
    for s in range(low, w.sizes.shape[0]):
        size = w.sizes[s]
        if size < p.size:
            continue
        if p.size > 0 and p.held + _shard_share(left, size, g.page) > p.slack:
            continue
        group = _extend(w, g, p.size, size, _need(g, p, size, left), row, NEAR)
        if group.ready == INF:
            continue
        start = max(p.clock, max(p.ready, group.ready))
        ttft = start + _predict(w, g, s, group.straddles, p.placed, left)
        if best < 0 or ttft - p.clock < (best_ttft - p.clock) * (1 - g.rate):
            best, best_ttft, best_queues = s, ttft, p.queues + group.queues
    return best, best_ttft, best_queues


@_inner
def _push(w: Arrays, p: Prefix, s: int) -> None:
    """Starts a level of the search: its prefix, and the size at which it begins."""
    f, i = w.floats[p.depth], w.ints[p.depth]
    f[0], f[1], f[2] = p.clock, p.ready, p.queues
    i[0], i[1], i[2], i[3], i[4], i[5] = p.size, p.placed, p.held, p.slack, s, 0


@_inner
def _level(w: Arrays, depth: int) -> tuple[Prefix, int, int]:
    """The prefix of a level, the size it is at, and the next larger one to try (0: none yet)."""
    f, i = w.floats[depth], w.ints[depth]
    return Prefix(depth, i[0], f[0], f[1], i[1], i[2], i[3], f[2]), i[4], i[5]


@_inner
def _enter(w: Arrays, p: Prefix, s: int, group: Joined) -> None:
    """Puts the level's group for sizes[s] onto the path."""
    f, i = w.floats[p.depth], w.ints[p.depth]
    f[3], f[4] = group.ready, group.queues
    i[4], i[5], i[6], i[7] = s, s + 1, group.straddles, group.least
    _mark(w, p.size, w.sizes[s], ADD)


@_inner
def _chunk(w: Arrays, g: Given, p: Prefix, s: int, larger: int, row: int, spread: bool) -> Prefix:
    """The prefix after the level's chunk that fills the time until sizes[larger] is free.

    Its size is 0 if there is no legal chunk.
    """
    f, i = w.floats[p.depth], w.ints[p.depth]
    group = Joined(f[3], i[6] != 0, i[7], f[4])
    i[5] = larger + 1
    size, target = w.sizes[s], w.sizes[larger]
    need = 0 if g.roomy else _history_share(p.placed, target, g.page)
    following = _extend(w, g, size, target, need, row, spread)
    ready = max(p.ready, group.ready)
    start = max(p.clock, ready)
    length = 0
    if following.ready < INF:
        length = _fill(w, g, p, s, group, start, max(ready, following.ready))
    w.lengths[p.depth], w.widths[p.depth] = length, size
    held = _history_share(p.placed, size, g.page) if size > p.size else p.held
    return Prefix(
        p.depth + 1,
        size if length > 0 else 0,
        start + _predict(w, g, s, group.straddles, p.placed, length),
        ready,
        p.placed + length,
        held + _shard_share(length, size, g.page),
        min(p.slack, group.least),
        p.queues + group.queues,
    )


@_inner
def _base(w: Arrays, g: Given, p: Prefix, low: int) -> int:
    """Algorithm 2 at a level of Algorithm 1: keeps its plan if it is the best so far.

    Returns the position of its size, with the group as the mask of the level's chunks; -1 if no
    chunk can be put in front.
    """
    base, ttft, queues = _single_chunk(w, g, p, low, p.depth)
    if base < 0:
        return -1
    size = w.sizes[base]
    left = g.total - p.placed
    _extend(w, g, p.size, size, _need(g, p, size, left), p.depth, NEAR)
    if p.depth == 0:
        w.score[2] = ttft
    if ttft < w.score[0]:
        _keep(w, g, p, size, ttft, ttft + g.price * (size * ttft - queues))
    if low >= base or size <= p.size:
        return -1
    for i in range(w.node.shape[0]):
        w.masks[p.depth + 1, i] = 0
    for at in range(size):
        w.masks[p.depth + 1, w.members[at]] = 1
    return base


@_inner
def _schedule(w: Arrays, g: Given, first: Prefix) -> None:
    """Algorithm 1, its recursion as a loop over levels: keeps the fastest plan."""
    base = np.empty(w.sizes.shape[0] + 1, np.int64)
    base[0] = _base(w, g, first, ZERO)
    _push(w, first, ZERO)
    depth = ZERO
    while depth >= 0:
        p, s, larger = _level(w, depth)
        if larger == 0:
            if s >= base[depth]:
                depth -= 1
                continue
            size = w.sizes[s]
            if size >= p.size:
                need = _need(g, p, size, g.min_chunk)
                group = _extend(w, g, p.size, size, need, depth + 1, NEAR)
                if group.ready < INF:
                    _enter(w, p, s, group)
                    continue
            w.ints[depth, 4] = s + 1
        elif larger > base[depth]:
            _mark(w, p.size, w.sizes[s], REMOVE)
            w.ints[depth, 4], w.ints[depth, 5] = s + 1, 0
        else:
            rest = _chunk(w, g, p, s, larger, depth + 1, NEAR)
            if rest.size > 0:
                base[depth + 1] = _base(w, g, rest, larger)
                if base[depth + 1] >= 0:
                    depth += 1
                    _push(w, rest, larger)


@_inner
def _last(w: Arrays, g: Given, p: Prefix, s: int, spread: bool) -> Joined:
    """The plan with all that is left on sizes[s]: keeps it if it is below the bound and cheapest.

    Returns the group for a chunk that is not the last.
    """
    size, left = w.sizes[s], g.total - p.placed
    group = _extend(w, g, p.size, size, _need(g, p, size, left), ZERO, spread)
    fits = p.size == 0 or p.held + _shard_share(left, size, g.page) <= p.slack
    if group.ready < INF and fits:
        start = max(p.clock, max(p.ready, group.ready))
        ttft = start + _predict(w, g, s, group.straddles, p.placed, left)
        cost = ttft + g.price * (size * ttft - (p.queues + group.queues))
        if ttft < w.score[3] and cost < w.score[1]:
            _keep(w, g, p, size, ttft, cost)
            if g.price == 0:
                w.score[3] = ttft
    if g.roomy:
        return group
    return _extend(w, g, p.size, size, _need(g, p, size, g.min_chunk), ZERO, spread)


@_inner
def _chains(
    w: Arrays, g: Given, first: Prefix, start_size: int, top: int, rates: Any, spread: bool
) -> None:
    """Every chain from sizes[start_size] to at most sizes[top - 1]; keeps the cheapest plan that
    is faster than score[3]."""
    _push(w, first, start_size)
    depth = ZERO
    while depth >= 0:
        p, s, larger = _level(w, depth)
        if larger == 0:
            group = _last(w, g, p, s, spread)
            start = max(p.clock, max(p.ready, group.ready))
            left = g.total - p.placed
            # Nothing finishes what is left faster than the best rates without step costs.
            least = start + left * (rates[4] + rates[5] * p.placed + rates[6] * left)
            if group.ready == INF or least >= w.score[3]:
                depth -= 1
            else:
                _enter(w, p, s, group)
        elif larger >= top:
            _mark(w, p.size, w.sizes[s], REMOVE)
            depth -= 1
        else:
            rest = _chunk(w, g, p, s, larger, ZERO, spread)
            if rest.size > 0:
                depth += 1
                _push(w, rest, larger)


@_inner
def _finish(w: Arrays, g: Given, history_size: int, history: int) -> None:
    """Puts each group's new members in index order and fills in the chunks' times."""
    m, n = w.sizes.shape[0], w.node.shape[0]
    first = 3 + 2 * m
    for node in range(w.seen.shape[0]):
        w.seen[node] = 0
    for i in range(n):
        w.marked[i] = 0
    ready, touched, clock, size, placed = 0.0, 0, 0.0, 0, history
    for at in range(w.best[0] + (history_size > 0)):
        # The history's group keeps its order; each later one's new members are sorted.
        chunk = at - (history_size > 0)
        width = w.best[2 + m + chunk] if chunk >= 0 else history_size
        for position in range(size, width):
            i = w.best[first + position]
            w.marked[i] = 1
            ready = max(ready, w.queue[i])
            touched += w.seen[w.node[i]] == 0
            w.seen[w.node[i]] = 1
        if chunk < 0:
            size = width
        for i in range(n):
            if w.marked[i]:
                w.marked[i] = 0
                if chunk >= 0:
                    w.best[first + size] = i
                    size += 1
        if chunk >= 0:
            straddles = g.spread_cost > 0 and touched > -(-width // g.per_node)
            w.times[chunk, 0] = max(clock, ready)
            s = 0
            while w.sizes[s] < width:
                s += 1
            tokens = w.best[1 + chunk]
            clock = w.times[chunk, 0] + _predict(w, g, s, straddles, placed, tokens)
            w.times[chunk, 1] = clock
            placed += tokens


@njit(cache=True, error_model="numpy")
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
) -> tuple[Any, Any, Any]:
    """Plans one prompt. Returns (best, score, times) of Arrays; score[0] is inf if none can run.

    order: i8[n], instances by (queue, index). counts: i8[6] tokens, history tokens, page size,
    minimum chunk, instances per node, 1 if no instance's memory can matter. rates: f8[7]
    improvement rate, price, spread cost, rate from which no plan grows, least b, c, d of all rows.
    """
    n, m = queue.shape[0], sizes.shape[0]
    tokens, history, page, per_node = counts[0], counts[1], counts[2], counts[4]
    node = np.empty(n, np.int64)
    for i in range(n):
        node[i] = i // per_node
    nodes = node[n - 1] + 1
    w = Arrays(
        queue,
        free,
        order,
        node,
        sizes,
        coef,
        np.empty(n, np.int64),
        np.zeros(n, np.uint8),
        np.zeros(nodes, np.int64),
        np.empty(nodes, np.int64),
        np.ones((m + 2, n), np.uint8),
        np.empty((m + 1, 5), np.float64),
        np.empty((m + 1, 8), np.int64),
        np.empty(m + 1, np.int64),
        np.empty(m + 1, np.int64),
        np.zeros(3 + 2 * m + n, np.int64),
        np.zeros((m + 1, 2), np.float64),
        np.full(4, INF),
    )
    g = Given(
        history + tokens, page, counts[3], per_node, rates[0], rates[1], rates[2], counts[5] != 0
    )
    cached = _history_share(history, history_group.shape[0], page) if history > 0 else 0
    ready, slack, queues = 0.0, MANY, 0.0
    for at in range(history_group.shape[0]):
        i = history_group[at]
        w.members[at] = i
        ready = max(ready, queue[i])
        slack = min(slack, free[i] + cached)
        queues += queue[i]
    p = Prefix(ZERO, history_group.shape[0], 0.0, ready, history, cached, slack, queues)
    if ready == INF or m == 0:
        return w.best, w.score, w.times
    _mark(w, ZERO, p.size, ADD)
    if mode == SINGLE:
        base, ttft, queues = _single_chunk(w, g, p, ZERO, ZERO)
        if base >= 0:
            w.score[2] = ttft
            _extend(w, g, p.size, sizes[base], _need(g, p, sizes[base], tokens), ZERO, NEAR)
            _keep(w, g, p, sizes[base], ttft, ttft)
    else:
        _schedule(w, g, p)
    if mode == CDSP and w.score[0] < INF:
        w.score[3] = w.score[0]
        widest = w.best[2 + m + w.best[0] - 1] if rates[0] >= rates[3] else n
        top = 0
        while top < m and sizes[top] <= widest:
            top += 1
        for family in range(2 if nodes > 1 else 1):
            for s in range(top):
                if sizes[s] >= p.size:
                    _chains(w, g, p, s, top, rates, family == 1)
    if w.score[0] < INF:
        _finish(w, g, p.size, history)
    return w.best, w.score, w.times
