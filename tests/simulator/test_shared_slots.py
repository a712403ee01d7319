"""Slots of cached prefixes that several simulated plans hold together."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from sglang_cdsp.simulator.shared_slots import SharedSlots
from sglang_cdsp.simulator.task import Task
from sglang_cdsp.simulator.types import Request


def task(number: int) -> Task:
    return Task(Request(str(number), 0.0, 1000, 1), number)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3), st.integers(0, 50)), max_size=8),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, print_blob=True)
def test_a_prefix_counts_once_as_long_as_anybody_starts_from_it(
    drawn: list[tuple[int, int, int]], order: object
) -> None:
    """Each task needs its prefix, of 100 tokens a block, and some slots of its own."""
    shared = SharedSlots()
    held: dict[Task, tuple[int, int, int]] = {}
    free = [0, 0]
    for number, (instance, block, own) in enumerate(drawn):
        one = task(number)
        shared.join(one, instance, block, 100 * block)
        one.slots = shared.beyond(one, {instance: 100 * block + own})
        free[instance] -= one.slots[instance]
        held[one] = instance, block, own
    tasks = list(held)
    order.shuffle(tasks)  # type: ignore[attr-defined]
    for leaves in [None, *tasks]:
        if leaves is not None:
            shared.leave(leaves)
            instance, *_ = held.pop(leaves)
            free[instance] += leaves.slots[instance]
        for instance in range(2):
            mine = [(block, own) for at, block, own in held.values() if at == instance]
            once = sum(100 * block for block in {block for block, _ in mine})
            assert -free[instance] == once + sum(own for _, own in mine)
            assert all(shared.promised(instance, block) for block, _ in mine)
    assert not any(shared.promised(i, block) for i in range(2) for block in range(1, 4))


def test_a_task_of_no_prefix_needs_all_of_its_own() -> None:
    shared, one = SharedSlots(), task(0)
    assert shared.beyond(one, {0: 7}) == {0: 7}
    shared.leave(one)
