"""Which instances form an SP group of a given size (GetGroup of Tetris).

`near` is the paper's rule. First chunk: if the size fits in one node, the node whose s-th shortest
queue is least, and its s shortest-queued instances; else whole nodes, shortest first, and the rest
by the one-node rule. Later chunks: first inside the nodes that already hold part of the group,
then as above on the other nodes. `spread` ignores nodes and takes the shortest queues anywhere.

Ties go to the lower index, so a plan depends on nothing but the pool's state. Queues are the
pool's own, not the recursion's shortened ones: instances that are all free by the time of a later
chunk are told apart by how long they have been free.
"""

from __future__ import annotations

from collections.abc import Sequence

from sglang_cdsp.planner.types import Group


def get_group(
    queue_s: Sequence[float],
    instances_per_node: int,
    allowed: Sequence[bool],
    initial: Group,
    size: int,
    *,
    spread: bool = False,
) -> Group | None:
    """The group of `size` that starts with `initial`, or None if too few are allowed.

    New members follow `initial` in index order, which keeps a node's instances neighbours on
    the ring. `allowed` does not apply to `initial`, which already takes part.
    """
    missing = size - len(initial)
    if missing < 0:
        return None
    candidates = sorted(
        (i for i in range(len(queue_s)) if allowed[i] and i not in initial),
        key=lambda i: (queue_s[i], i),
    )
    if spread:
        new = candidates[:missing]
    else:
        new = _near(queue_s, instances_per_node, candidates, initial, missing)
    return initial + tuple(sorted(new)) if len(new) == missing else None


def straddles(group: Sequence[int], instances_per_node: int) -> bool:
    """Whether the group touches more nodes than its size needs."""
    touched = len({i // instances_per_node for i in group})
    return touched > -(-len(group) // instances_per_node)


def _near(
    queue_s: Sequence[float],
    instances_per_node: int,
    candidates: Sequence[int],
    initial: Group,
    missing: int,
) -> list[int]:
    """Up to `missing` of the candidates (shortest first) by the paper's node rules."""
    holding = {i // instances_per_node for i in initial}
    new = [i for i in candidates if i // instances_per_node in holding][:missing]
    nodes: dict[int, list[int]] = {}
    for i in candidates:
        if i // instances_per_node not in holding:
            nodes.setdefault(i // instances_per_node, []).append(i)
    while len(new) < missing and nodes:
        rest = missing - len(new)
        fitting = [node for node, members in nodes.items() if len(members) >= rest]
        if fitting:
            node = min(fitting, key=lambda node: (queue_s[nodes[node][rest - 1]], node))
            return new + nodes[node][:rest]
        whole = min(nodes, key=lambda node: (queue_s[nodes[node][-1]], node))
        new += nodes.pop(whole)
    return new
