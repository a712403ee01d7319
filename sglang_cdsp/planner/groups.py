"""GetGroup: which instances form an SP group of a given size (Tetris, papers.md 1.6).

First chunk: if the size fits in one node, the node whose s-th shortest queue is least, and its s
shortest-queued instances; else whole nodes, shortest first, and the rest by the one-node rule.
Later chunks: first inside the nodes that already hold part of the group, then as above on the
other nodes. Ties go to the lower index, so a plan depends on nothing but the pool's state.
"""

from __future__ import annotations

from collections.abc import Sequence


def get_group(
    queue_s: Sequence[float],
    instances_per_node: int,
    allowed: Sequence[bool],
    initial: tuple[int, ...],
    size: int,
) -> tuple[int, ...] | None:
    """The group of `size` that starts with `initial`, or None if too few are allowed.

    New members follow `initial` in index order, which keeps a node's instances neighbours on
    the ring. `allowed` does not apply to `initial`, which already takes part.
    """
    missing = size - len(initial)
    if missing < 0:
        return None
    holding = {i // instances_per_node for i in initial}
    near: list[int] = []
    other: dict[int, list[int]] = {}
    for i in sorted(range(len(queue_s)), key=lambda i: (queue_s[i], i)):
        node = i // instances_per_node
        if not allowed[i] or i in initial:
            continue
        if node in holding:
            near.append(i)
        else:
            other.setdefault(node, []).append(i)
    new = near[:missing]
    missing -= len(new)
    while missing > 0:
        if not other:
            return None
        fitting = [node for node, members in other.items() if len(members) >= missing]
        if fitting:
            node = min(fitting, key=lambda node: (queue_s[other[node][missing - 1]], node))
            new += other[node][:missing]
            break
        node = min(other, key=lambda node: (queue_s[other[node][-1]], node))
        missing -= len(other[node])
        new += other.pop(node)
    return initial + tuple(sorted(new))
