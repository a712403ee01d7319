"""Whose turn it is at each instance when a plan changes."""

from __future__ import annotations

from sglang_cdsp.planner.types import Group, Plan, PlannedChunk
from sglang_cdsp.simulator.order import BindingOrder
from sglang_cdsp.simulator.task import Task
from sglang_cdsp.simulator.types import Request


def bound(order: BindingOrder, number: int, *chunks: tuple[int, Group]) -> Task:
    """A task with a plan, behind those that were bound before."""
    plan = planned(*chunks)
    task = Task(Request(f"r{number}", 0.0, plan.tokens, 1), number, plan, 0.0, number)
    order.add(0.0, task, plan)
    return task


def planned(*chunks: tuple[int, Group]) -> Plan:
    return Plan(tuple(PlannedChunk(n, group, 0.0, 1.0) for n, group in chunks), 1.0, "any")


def test_a_task_that_waited_for_two_instances_starts_once_when_both_are_left() -> None:
    order = BindingOrder(3)
    leaves = bound(order, 0, (100, (0,)), (300, (0, 1, 2)))
    waits = bound(order, 1, (50, (1, 2)))
    leaves.chunk = 1
    assert order.replace(0.5, leaves, planned((100, (0,)), (300, (0,)))) == [waits]
    assert [list(queue) for queue in order.queues] == [[leaves], [waits], [waits]]
