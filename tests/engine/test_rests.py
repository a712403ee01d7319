"""Rests that change between two chunks: slots, numbers of transfers, and one rank's orders."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import Send, number_sends, plan_layout
from sglang_cdsp.planner.rests import Placed
from sglang_cdsp.planner.types import Placement
from sglang_cdsp.protocol.messages import (
    ChunkDone,
    Drained,
    Failed,
    FirstToken,
    ForgetOrder,
    Ready,
    ReleaseOrder,
    RestOrder,
)
from tests.engine.fake_kv import StrictAllocator
from tests.engine.fake_rank import CHUNKS, PAGES, Rank
from tests.engine.plans import PAGE_SIZES, plans
from tests.planner.drawn_plans import drawn_rest

INSTANCES = 5


class Members:
    """The tasks of one plan on its instances, each with the slots that it was promised."""

    def __init__(self, chunks: Placement, page: int) -> None:
        self.page = page
        self.allocators = [StrictAllocator(2000, page) for _ in range(INSTANCES)]
        self.tasks: dict[int, ChunkTask] = {}
        self.revision, self.ran = 0, 0
        self.follow(chunks)

    def follow(self, chunks: Placement) -> None:
        """A plan comes into force, as the orders of the controller make it."""
        ran = Placed.after(chunks[: self.ran], self.page)
        self.chunks, self.promised = chunks, ran.with_rest(chunks[self.ran :], self.page)
        self.layouts = plan_layout(chunks, self.page)
        for me in set(self.tasks) - set(self.promised):
            self.tasks.pop(me).slot_table.clear()
        for me in self.promised:
            if me in self.tasks:
                self.tasks[me].take_rest(self.layouts, self.ran, self.revision, me)
            else:
                self.tasks[me] = self._task(me)
        self.revision += 1

    def _task(self, me: int) -> ChunkTask:
        length = self.layouts[-1].start + self.layouts[-1].tokens
        return ChunkTask(
            seq=0,
            rid="r",
            room=None,
            probe=True,
            layouts=self.layouts,
            tokens=torch.zeros(length, dtype=torch.int64),
            slot_table=SlotTable(self.allocators[me], self.page),
            next_chunk=next(c.index for c in self.layouts if me in c.group),
            revision=self.revision,
        )

    def get_ready(self, me: int) -> None:
        """A member takes the slots of its next chunk, which may be a later one."""
        task = self.tasks[me]
        if task.next_chunk < len(self.chunks) and task.prepared != task.next_chunk:
            task.take_slots(me)
        taken = len(self.allocators[me].taken) * self.page
        assert taken <= self.promised[me], "it takes more than it was promised"

    def run(self) -> list[Send]:
        """The next chunk, from its slots to what leaves; returns what goes to decode."""
        layout = self.layouts[self.ran]
        for me in layout.group:
            task = self.tasks[me]
            assert task.next_chunk == layout.index
            self.get_ready(me)
            assert task.slot_table.slots(layout.history[layout.group.index(me)]) is not None
        for me in layout.group:
            task = self.tasks[me]
            task.slot_table.drop(move.span for move in layout.moves if move.src == me)
            task.next_chunk += 1
        self.ran += 1
        return [send for send in number_sends(self.layouts, 0) if send.chunk == layout.index]


@settings(max_examples=80, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_any_rests_keep_to_what_is_promised_and_to_decodes_numbers(
    data: st.DataObject, page: int, seed: int
) -> None:
    first = data.draw(plans(page, INSTANCES, longest=8))
    draw = random.Random(seed)
    members = Members(tuple((n, tuple(group)) for n, group in first), page)
    length = sum(tokens for tokens, _ in members.chunks)
    sends: list[Send] = []
    changes = 0
    while members.ran < len(members.chunks):
        for me in draw.sample(sorted(members.tasks), draw.randint(0, len(members.tasks))):
            members.get_ready(me)
        if members.ran and changes < 6 and draw.random() < 0.6:
            changes += 1
            rest = drawn_rest(members.chunks, members.ran, page, INSTANCES, draw)
            members.follow(members.chunks[: members.ran] + rest)
        else:
            sends += members.run()
    assert sorted(send.send_id for send in sends) == list(range(len(sends)))
    assert [send.send_id for send in sends if send.last] == [len(sends) - 1]
    sent = sorted(p for send in sends for s in send.spans for p in range(s.start, s.stop))
    assert sent == list(range(length)), "every token once"
    for task in members.tasks.values():
        task.slot_table.clear()
    assert not any(allocator.taken for allocator in members.allocators)


# -- one rank -------------------------------------------------------------------------------


def rest_order(chunks: list[tuple[int, list[int]]], *, chunk: int = 1) -> RestOrder:
    return RestOrder(seq=0, revision=1, chunk=chunk, chunks=chunks)


def test_a_member_gets_ready_anew_and_frees_what_it_had_taken() -> None:
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.written[0] = "landed"
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 0, "chunk": 1, "revision": 0, "found": None}
    assert rank.allocator.available_size() == PAGES - 64 - 32
    rank.engine.on_rest(rest_order([(64, [0]), (128, [0])]))
    assert rank.allocator.available_size() == PAGES - 64
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 0, "chunk": 1, "revision": 1, "found": None}
    assert rank.allocator.available_size() == PAGES - 192
    rank.go(1, revision=1)
    assert rank.kinds().count(FirstToken) == 1, "it is the last chunk now"
    rank.written[1] = "landed"
    rank.engine.step()
    assert rank.last(Drained)["error"] == ""
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert rank.allocator.available_size() == PAGES
    assert rank.engine.idle


def test_a_chunk_of_another_plan_is_not_started() -> None:
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.engine.on_rest(rest_order([(64, [0]), (128, [0])]))
    rank.engine.step()
    rank.go(1)
    assert rank.kinds().count(ChunkDone) == 1
    assert "chunk 1 of plan 0 was started, this instance has plan 1" in rank.last(Failed)["error"]
    assert rank.last(Failed)["revision"] == 1


def test_a_member_that_comes_later_now_comes_at_another_chunk() -> None:
    rank = Rank(instance=1)
    rank.plan()
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 0, "chunk": 1, "revision": 0, "found": None}
    rank.engine.on_rest(rest_order([(64, [0]), (64, [0]), (64, [0, 1])]))
    assert rank.allocator.available_size() == PAGES
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 0, "chunk": 2, "revision": 1, "found": None}
    # Half of the history comes to it, and half of the chunk is its own.
    assert rank.allocator.available_size() == PAGES - 64 - 32


def test_who_leaves_forgets_the_task_and_says_nothing() -> None:
    rank = Rank(instance=1)
    rank.plan()
    rank.plan([(64, [1])], rid="next", seq=1)
    rank.request("next")
    rank.engine.step()
    assert rank.allocator.available_size() < PAGES
    said = len(rank.said)
    rank.engine.on_forget(ForgetOrder(seq=0))
    assert rank.allocator.available_size() == PAGES
    assert len(rank.said) == said
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 1, "chunk": 0, "revision": 0, "found": None}, (
        "the next has its turn"
    )
    rank.engine.on_forget(ForgetOrder(seq=0))
    rank.engine.on_rest(rest_order(CHUNKS))
    rank.stop(seq=0)


def test_a_home_that_leaves_gives_the_request_back_without_an_answer() -> None:
    rank = Rank()
    rank.plan()
    req = rank.request()
    rank.engine.step()
    rank.engine.on_forget(ForgetOrder(seq=0))
    rank.scheduler.output_streamer.stream_output.assert_not_called()
    assert req.metadata_buffer_index == -1
    assert rank.allocator.available_size() == PAGES
    assert rank.engine.idle


def test_a_home_that_stays_as_a_member_gives_the_request_back_without_an_answer() -> None:
    rank = Rank()
    rank.plan()
    req = rank.request()
    rank.engine.step()
    rank.engine.on_rest(rest_order([(192, [1, 0])], chunk=0))
    assert req.metadata_buffer_index == -1
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 0, "chunk": 0, "revision": 1, "found": None}
    rank.stop()
    rank.engine.on_release(ReleaseOrder(seq=0, error="no"))
    rank.scheduler.output_streamer.stream_output.assert_not_called()
    assert rank.allocator.available_size() == PAGES


def test_a_task_that_was_stopped_gets_no_other_rest() -> None:
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.stop()
    rank.engine.on_rest(rest_order([(64, [0]), (128, [0])]))
    rank.written[0] = "landed"
    rank.engine.step()
    assert rank.kinds().count(Drained) == 1
    assert rank.kinds().count(Ready) == 1
