"""GetGroup, compiled: which instances join the group placed so far (groups.py)."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.planner.compiled.arrays import (
    DEPTHS,
    FREE,
    HOLDING,
    INF,
    LIST,
    MANY,
    MARKED,
    MEMBERS,
    NODE,
    ORDER,
    QUEUE,
    QUEUES,
    READY,
    REST,
    SIZES,
    STRADDLES,
    Given,
    Joined,
    Prefix,
    inner,
)
from sglang_cdsp.planner.compiled.formulas import history_share, shard_share


@inner
def with_room(i: Any, g: Given, depth: int, need: int) -> int:
    """The LIST row with only those instances of the depth's that have `need` free slots."""
    row = DEPTHS + 3 * depth + LIST
    if g.roomy:
        return row
    to = DEPTHS + 3 * (g.m + 2) + LIST
    for node in range(g.k):
        start, kept = node * g.per_node, 0
        for at in range(start, start + i[row + 1, node]):
            x = i[row, at]
            if i[FREE, x] >= need:
                i[to, start + kept] = x
                kept += 1
        i[to + 1, node] = kept
    return to


@inner
def join_shortest(i: Any, f: Any, g: Given, p: Prefix, size: int, s: int, need: int) -> Joined:
    """A group of sizes[s] with the shortest queues anywhere; see join."""
    if g.roomy:
        # Members are written by write_shortest once they are wanted.
        return Joined(f[READY, s], f[STRADDLES, s] > 0, MANY, f[QUEUES, s] - p.queues)
    target = i[SIZES, s]
    at, ready, least, queues, touched = size, 0.0, MANY, 0.0, 0
    for node in range(g.k):
        i[REST, node] = i[HOLDING, node]
        touched += i[HOLDING, node] > 0
    for position in range(g.n):
        x = i[ORDER, position]
        if at == target or f[QUEUE, x] == INF:
            break
        if i[MARKED, x] == 0 and i[FREE, x] >= need:
            touched += i[REST, i[NODE, x]] == 0
            i[REST, i[NODE, x]] = 1
            i[MEMBERS, at] = x
            at += 1
            ready = f[QUEUE, x]
            least = min(least, i[FREE, x])
            queues += f[QUEUE, x]
    if at < target:
        return Joined(INF, False, 0, 0.0)
    return Joined(ready, g.spread_cost > 0 and touched > -(-target // g.per_node), least, queues)


@inner
def write_shortest(i: Any, g: Given, last: int) -> None:
    """MEMBERS[:last] = the history's group, then the shortest queues that are not marked."""
    at, position = g.history_size, 0
    while at < last:
        x = i[ORDER, position]
        position += 1
        if i[MARKED, x] == 0:
            i[MEMBERS, at] = x
            at += 1


@inner
def nth_free(i: Any, g: Given, row: int, node: int, skip: int) -> int:
    """The node's unmarked instance after the first `skip` of them; -1 if there is none."""
    start = node * g.per_node
    for at in range(start, start + i[row + 1, node]):
        x = i[row, at]
        if i[MARKED, x] == 0:
            if skip == 0:
                return x
            skip -= 1
    return -1


@inner
def share_out(i: Any, f: Any, g: Given, row: int, wanted: int) -> int:
    """Fills REST: how many of `wanted` new members each node of the group gives, the shortest
    queues over all of these nodes. Returns their number."""
    spare = 0
    for node in range(g.k):
        i[REST, node] = 0
        if i[HOLDING, node] > 0:
            start = node * g.per_node
            for position in range(start, start + i[row + 1, node]):
                i[REST, node] += i[MARKED, i[row, position]] == 0
            spare += i[REST, node]
    if spare <= wanted:
        return spare
    for node in range(g.k):
        i[REST, node] = 0
    for _ in range(wanted):
        chosen, head = -1, -1
        for node in range(g.k):
            if i[HOLDING, node] > 0:
                x = nth_free(i, g, row, node, i[REST, node])
                if x >= 0 and (
                    head < 0
                    or f[QUEUE, x] < f[QUEUE, head]
                    or (f[QUEUE, x] == f[QUEUE, head] and x < head)
                ):
                    chosen, head = node, x
        i[REST, chosen] += 1
    return wanted


@inner
def take(i: Any, f: Any, g: Given, row: int, node: int, at: int, count: int, j: Joined) -> Joined:
    """Writes the node's first `count` unmarked instances to MEMBERS[at:] and adds them to `j`."""
    position = node * g.per_node
    ready, least, queues = j.ready, j.least, j.queues
    while count > 0:
        x = i[row, position]
        position += 1
        if i[MARKED, x] == 0:
            i[MEMBERS, at] = x
            at += 1
            count -= 1
            ready = max(ready, f[QUEUE, x])
            least = min(least, i[FREE, x])
            queues += f[QUEUE, x]
    return Joined(ready, j.straddles, least, queues)


@inner
def join_near(
    i: Any, f: Any, g: Given, size: int, target: int, need: int, depth: int, dry: bool
) -> Joined:
    """GetGroup: writes the new members to MEMBERS[size:target] (groups.py).

    A dry join only tells when the group is free.
    """
    row = with_room(i, g, depth, need)
    at = size
    j = Joined(0.0, False, MANY, 0.0)
    if size > 0:
        share_out(i, f, g, row, target - size)
        for node in range(g.k):
            if i[REST, node] > 0:
                j = take(i, f, g, row, node, at, i[REST, node], j)
                at += i[REST, node]
    if at < target:
        for node in range(g.k):
            i[REST, node] = 0 if i[HOLDING, node] > 0 else i[row + 1, node]
    while at < target:
        # The node whose s-th shortest queue is least; if none holds them all, the whole node
        # that is free first.
        missing = target - at
        fit, fit_queue, whole, whole_queue = -1, INF, -1, INF
        for node in range(g.k):
            count = i[REST, node]
            if count >= missing:
                queue = f[QUEUE, i[row, node * g.per_node + missing - 1]]
                if fit < 0 or queue < fit_queue:
                    fit, fit_queue = node, queue
            elif count > 0 and fit < 0:
                queue = f[QUEUE, i[row, node * g.per_node + count - 1]]
                if whole < 0 or queue < whole_queue:
                    whole, whole_queue = node, queue
        node = fit if fit >= 0 else whole
        if node < 0:
            return Joined(INF, False, 0, 0.0)
        count = min(missing, i[REST, node])
        if dry:
            last = f[QUEUE, i[row, node * g.per_node + count - 1]]
            j = Joined(max(j.ready, last), j.straddles, j.least, j.queues)
        else:
            j = take(i, f, g, row, node, at, count, j)
        at += count
        i[REST, node] = 0
    return j


@inner
def join(
    i: Any,
    f: Any,
    g: Given,
    p: Prefix,
    size: int,
    s: int,
    tokens: int,
    depth: int,
    spread: bool,
    dry: bool,
) -> Joined:
    """A group of sizes[s] that contains the `size` members marked, for a chunk of `tokens`."""
    need = 0
    if not g.roomy:
        need = history_share(p.placed, i[SIZES, s], g.page)
        if tokens > 0:
            need += shard_share(tokens, i[SIZES, s], g.page)
    if spread or g.lazy:
        return join_shortest(i, f, g, p, size, s, need)
    return join_near(i, f, g, size, i[SIZES, s], need, depth, dry)
