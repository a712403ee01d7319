"""A chunk's KV on its way to decode: every page to its place, from the one that holds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine.prefixes import CachedPrefix
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.engine.writes import (
    begin_write,
    cancel_writes,
    finish_write,
    poll_writes,
    written_before,
)
from sglang_cdsp.parallel.chunk_layout import ChunkLayout, plan_layout
from sglang_cdsp.transfer.failures import TransferFailed
from tests.engine.fake_kv import PlanRun
from tests.engine.fake_stock import FakeScheduler
from tests.engine.fake_transfer import LAYERS, ROOM, FakePoolManager
from tests.engine.plans import PAGE_SIZES, plans


class FakeHome:
    """Home's request and the scheduler's metadata buffers."""

    def __init__(self) -> None:
        self.stamped = 0
        self.filled: list[Any] = []
        stats = SimpleNamespace(set_prefill_transfer_queue_entry_time=self._stamp)
        self.req = SimpleNamespace(metadata_buffer_index=9, time_stats=stats)
        buffers = SimpleNamespace(set_buf=self.filled.append)
        self.scheduler = FakeScheduler(disagg_metadata_buffers=buffers)

    def _stamp(self) -> None:
        self.stamped += 1


def task_of(run: PlanRun, layouts: tuple[ChunkLayout, ...], me: int, home: FakeHome) -> ChunkTask:
    length = layouts[-1].start + layouts[-1].tokens
    task = ChunkTask(
        seq=1,
        rid="r",
        room=ROOM,
        probe=False,
        layouts=layouts,
        tokens=torch.zeros(length, dtype=torch.int64),
        slot_table=run.slot_table[me],
        next_chunk=0,
    )
    if me == task.home:
        task.req = home.req
    return task


@settings(max_examples=80, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES)
def test_decode_gets_every_page_it_lacks_once_and_in_its_place(
    data: st.DataObject, page: int
) -> None:
    """Chunk by chunk as the engine does it: run, write, give history away.

    A write is read at the time it is posted: the slots are freed only when it has drained. What
    home has cached of the prompt is among it.
    """
    chunks = data.draw(plans(page))
    reused = data.draw(st.integers(0, 4)) * page
    layouts = plan_layout(chunks, page, reused)
    length = layouts[-1].start + layouts[-1].tokens
    prefix = data.draw(st.integers(0, length // page)) * page
    places = list(range(1000, 1000 + -(-(length - prefix) // page)))
    run, home = PlanRun(layouts, page), FakeHome()
    if reused:
        first = layouts[0].group[0]
        slots = run.allocators[first].alloc(reused)
        assert slots is not None
        run.start_from(first, CachedPrefix(slots, "node", "lock", "tree"))
    got: dict[tuple[int, int], int] = {}
    for layout in layouts:
        run.run(layout.index)
        for me in layout.group:
            manager = FakePoolManager(page_size=page)
            manager.peer("a")
            manager.pages("a", places, prefix=prefix)
            task = task_of(run, layouts, me, home)
            write = begin_write(manager, task, layout.index, me)
            if write is not None:
                finish_write(home.scheduler, task, write)
            assert all(chunk == layout.index for chunk, _ in task.writes)
            for how, sent in manager.sent:
                for source, place in sent["pages"] if how == "kv" else ():
                    assert (sent["layer"], place) not in got, "two holders share a page"
                    got[sent["layer"], place] = run.memory[me][source * page]
    assert got == {
        (layer, place): prefix + index * page
        for layer in range(LAYERS)
        for index, place in enumerate(places)
    }
    assert home.filled == [home.req], "the metadata goes once, with home's last transfer"
    assert home.stamped == 1


def flying(*chunks: int) -> tuple[FakePoolManager, ChunkTask]:
    """A task with one write in flight per named chunk."""
    manager = FakePoolManager()
    run = PlanRun(plan_layout([(4, [0])], 1), 1)
    run.run(0)
    task = task_of(run, plan_layout([(4, [0])], 1), 0, FakeHome())
    manager.peer("a")
    manager.pages("a", [10, 11, 12, 13])
    for chunk in chunks:
        source, place = np.array([5], np.int32), np.array([0], np.int64)
        write = manager.open_write(ROOM, source, place, 0, last=False)
        write.layer_stored(0)
        write.layer_stored(1)
        write.computed(aux_index=None)
        task.writes.append((chunk, write))
    return manager, task


def of_chunk(manager: FakePoolManager, chunk: int, state: str) -> None:
    """Both layers of a write of ``flying`` end."""
    for handle in (2 * chunk + 1, 2 * chunk + 2):
        manager.agent.states[handle] = state


def test_ended_writes_are_forgotten_the_others_stay() -> None:
    manager, task = flying(0, 1, 2)
    of_chunk(manager, 1, "DONE")
    poll_writes(task)
    assert [chunk for chunk, _ in task.writes] == [0, 2]
    manager.agent.end_all()
    poll_writes(task)
    assert task.writes == []
    assert sorted(manager.agent.released) == [1, 2, 3, 4, 5, 6]


def test_a_failed_write_is_told_once_and_hides_no_other() -> None:
    manager, task = flying(0, 1, 2)
    of_chunk(manager, 1, "ERR")
    with pytest.raises(TransferFailed):
        poll_writes(task)
    assert [chunk for chunk, _ in task.writes] == [0, 2]
    poll_writes(task)
    assert [chunk for chunk, _ in task.writes] == [0, 2]


def test_history_leaves_once_the_writes_that_read_it_have_drained() -> None:
    manager, task = flying(0, 1, 1)
    assert not written_before(task, 1)
    of_chunk(manager, 0, "DONE")
    assert written_before(task, 1)
    assert not written_before(task, 2)
    assert [chunk for chunk, _ in task.writes] == [1, 1]


def test_a_dropped_chunk_leaves_nothing_behind() -> None:
    """What one layer posted ends before the task's slots may go; nothing follows it."""
    manager, task = flying()
    write = begin_write(manager, task, 0, 0)
    assert write is not None
    assert [posted for _, posted in task.writes] == [write]
    write.layer_stored(0)
    cancel_writes(task)
    write.layer_stored(1)
    poll_writes(task)
    assert [posted for _, posted in task.writes] == [write]
    manager.agent.end_all()
    poll_writes(task)
    assert task.writes == []
    assert [sent["layer"] for _, sent in manager.sent] == [0]
    assert manager.notes() == []
