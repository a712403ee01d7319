"""An instance's queue: first come first, tasks and one-instance requests alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.task_queue import TaskQueue
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.parallel.chunk_layout import plan_layout
from tests.engine.fake_kv import StrictAllocator

LAYOUTS = plan_layout([(4, [0])], 1)


def task(seq: int) -> ChunkTask:
    slot_table = SlotTable(StrictAllocator(8, 1), 1)
    tokens = torch.zeros(4, dtype=torch.int64)
    return ChunkTask(seq, f"r{seq}", None, False, LAYOUTS, tokens, slot_table, 0)


def queue_of(*items: ChunkTask | StockRequest) -> TaskQueue:
    queue = TaskQueue()
    for item in items:
        queue.append(item)
    return queue


def tokenized(rid: str) -> Any:
    return SimpleNamespace(rid=rid)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_everything_has_its_turn_in_the_order_of_arrival_but_tasks_that_are_over(
    drawn: list[tuple[bool, bool]],
) -> None:
    items: list[ChunkTask | StockRequest] = []
    for seq, (is_task, over) in enumerate(drawn):
        item = task(seq) if is_task else StockRequest(seq, f"r{seq}")
        if isinstance(item, ChunkTask):
            item.over = over
        items.append(item)
    queue = queue_of(*items)
    turns = []
    while (head := queue.head()) is not None:
        assert head is queue.head(), "looking changes nothing"
        turns.append(head)
        queue.remove(head)
    assert turns == [item for item in items if not (isinstance(item, ChunkTask) and item.over)]
    assert not queue


def test_a_task_that_ends_at_the_head_makes_way() -> None:
    first, second = task(0), task(1)
    queue = queue_of(first, second)
    assert queue.head() is first
    first.over = True
    assert queue.head() is second


def test_what_is_not_there_is_removed_without_complaint() -> None:
    queue = queue_of(task(0))
    queue.remove(task(1))
    assert queue


def test_a_request_finds_its_place_once() -> None:
    """An id may be used again as soon as its request has been answered."""
    first, second = StockRequest(1, "a"), StockRequest(2, "a")
    queue = queue_of(task(0), first, second)
    assert queue.hold(tokenized("a"))
    assert (first.tokenized is None, second.tokenized is None) == (False, True)
    assert queue.hold(tokenized("a"))
    assert not queue.hold(tokenized("a"))
    assert not queue.hold(tokenized("r0")), "a task's request goes to SGLang's intake"


@pytest.mark.parametrize(("wanted", "left"), [("a", 2), ("", 1)])
def test_requests_are_taken_out_and_tasks_stay(wanted: str, left: int) -> None:
    queue = queue_of(StockRequest(0, "a1"), task(1), StockRequest(2, "b"))
    taken = queue.take_requests(lambda request: request.rid.startswith(wanted))
    assert [request.seq for request in taken] == ([0] if wanted else [0, 2])
    remaining = []
    while (head := queue.head()) is not None:
        remaining.append(head)
        queue.remove(head)
    assert len(remaining) == left
    assert any(isinstance(item, ChunkTask) for item in remaining)
