"""Prompts that pass: which running chunks to run between, and at what price.

A chunk's forward gives way at layer boundaries, so a prompt may run on members of a running group
while that group stands still (`Passable`). A stall at one member stalls the whole ring, so

- what passing takes from the pool are the instance-seconds by which rings stand still longer, all
  members counted, and those of idle instances that take part;
- a member of a ring that stands still anyway has room until the ring goes on, at no cost: short
  prompts that pass one chunk at the same layer are packed side by side;
- every ring's delay also counts against its own prompt, and must stay within its budget.

The idea of pre-empting long prefills for short prompts, and of packing those that do so together,
is PecSched's; here passing has a price, so it is done where it pays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sglang_cdsp.planner.groups import straddles
from sglang_cdsp.planner.memory import shard_share
from sglang_cdsp.planner.problem import Problem
from sglang_cdsp.planner.types import Group, Passable, PoolView


@dataclass(frozen=True, slots=True)
class Passing:
    """One way to run a prompt at once.

    start_s, end_s: from the planning moment. work: instance-seconds that it takes from the pool.
    delays: by how many seconds each ring that it touches is put off.
    """

    group: Group
    start_s: float
    end_s: float
    work: float
    delays: tuple[tuple[Group, float], ...]


def ways_to_pass(problem: Problem, passable: tuple[Passable, ...]) -> Iterator[Passing]:
    """Every way that keeps to the budgets: inside one ring, or over idle instances and rings.

    Inside a ring the members that are free first are taken. Over several, first the idle
    instances, or none of them, then rings from the prompt that takes longest to the shortest.
    Prompts with history on instances do not pass.
    """
    if problem.history_group:
        return
    up = [ring for ring in passable if all(problem.queue_s[i] < math.inf for i in ring.instances)]
    # A member that has run its shard may have begun the next chunk while its group still runs: the
    # later ring is the one that it stands in.
    ring_of = {i: ring for ring in up for i in ring.instances}
    idle = [i for i, queue in enumerate(problem.queue_s) if not queue and i not in ring_of]
    ordered = [
        (ring, [i for i in _free_first(ring) if ring_of[i] is ring])
        for ring in sorted(up, key=_longest_first)
    ]
    inside = [i for _, members in ordered for i in members]
    for size in problem.sizes:
        need = shard_share(problem.tokens, size, problem.page_size)
        groups = [
            members[:size]
            for ring, members in ordered
            if len(members) >= size and ring.budget_s + ring.resume_s > ring.boundary_s
        ]
        if ordered and len(ordered[0][1]) < size:
            groups.append(inside[:size])
        if idle:
            groups.append([*idle, *inside][:size])
        for members in groups:
            if len(members) == size and all(problem.free_tokens[i] >= need for i in members):
                way = _way(problem, tuple(sorted(members)), ring_of)
                if way is not None:
                    yield way


def _longest_first(ring: Passable) -> tuple[float, Group]:
    return -ring.own_s, ring.instances


def passed(pool: PoolView, group: Group, end_s: float) -> tuple[tuple[Passable, ...], Group, float]:
    """How a prompt that passes on `group` until `end_s` leaves the rings.

    Returns the rings, the members of those that are delayed, and the largest delay.
    """
    delays = {
        ring.instances: max(0.0, end_s - ring.resume_s)
        for ring in pool.passable
        if not set(ring.instances).isdisjoint(group)
    }
    late = tuple(i for members, delay in delays.items() if delay for i in members)
    total = sum(delays.values())
    rings = []
    for ring in pool.passable:
        # A prompt may run on one ring and wait for another: its budget counts for both.
        after = replace(ring, budget_s=ring.budget_s - total)
        if ring.instances in delays:
            taken = tuple(
                end_s if i in group else until
                for i, until in zip(ring.instances, ring.taken_s, strict=True)
            )
            after = replace(after, resume_s=max(ring.resume_s, end_s), taken_s=taken)
        rings.append(after)
    return tuple(rings), late, max(delays.values(), default=0.0)


def _free_first(ring: Passable) -> list[int]:
    """A ring's members, those first that serve nobody or end first."""
    taken = dict(zip(ring.instances, ring.taken_s, strict=True))
    return sorted(ring.instances, key=lambda i: (taken[i], i))


def _way(problem: Problem, group: Group, ring_of: dict[int, Passable]) -> Passing | None:
    """The group's times and costs; None beyond a budget."""
    rings: list[Passable] = []
    start = 0.0
    alone = 0
    for i in group:
        ring = ring_of.get(i)
        if ring is None:
            alone += 1
            continue
        if ring not in rings:
            rings.append(ring)
        start = max(start, ring.boundary_s, ring.taken_s[ring.instances.index(i)])
    if not rings:
        return None
    spread = straddles(group, problem.instances_per_node)
    seconds = problem.row(group, spread).predict(0, problem.tokens)
    end = start + seconds
    delays = tuple((ring.instances, max(0.0, end - ring.resume_s)) for ring in rings)
    total = sum([delay for _, delay in delays])
    if total and total > min([ring.budget_s for ring in rings]):
        return None  # a prompt may run on one ring and wait for another
    work = alone * end + sum([len(members) * delay for members, delay in delays])
    return Passing(group, start, end, work, delays)
