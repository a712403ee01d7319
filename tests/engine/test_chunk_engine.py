"""One rank's queue and work: what is reported, written and freed, and in which order."""

from __future__ import annotations

from http import HTTPStatus
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    ChunkDone,
    Drained,
    Failed,
    Ready,
    ReleaseOrder,
    StockEnded,
    StockOrder,
    WriteLost,
)
from tests.engine.fake_rank import CHUNKS, PAGES, Rank
from tests.engine.fake_stock import FakeBatch


def test_a_task_is_drained_when_its_writes_have_ended_and_free_when_all_are() -> None:
    rank = Rank()
    rank.plan()
    rank.request()
    for chunk in range(len(CHUNKS)):
        rank.engine.step()
        assert rank.last(Ready) == {"seq": 0, "chunk": chunk, "revision": 0, "found": None}
        if chunk == 1:
            rank.written[0] = "landed"  # history leaves home: its slots must not be read any more
        rank.go(chunk)
    for write in (1, 2):
        rank.engine.step()
        assert Drained not in rank.kinds()
        rank.written[write] = "landed"
    rank.engine.step()
    assert rank.last(Drained) == {"seq": 0, "error": "", "uncertain": False}
    assert rank.allocator.available_size() < PAGES
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert rank.allocator.available_size() == PAGES
    rank.scheduler.output_streamer.stream_output.assert_called_once()
    rank.engine.step()
    assert rank.engine.idle
    assert len(rank.started) == len(rank.computed) == len(CHUNKS), "each forward is counted once"


def test_where_a_device_says_when_it_started_that_is_reported() -> None:
    """The host starts long before: what it has launched may wait behind others' work."""
    rank = Rank()
    rank.device_start_s = -123.5
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    assert rank.last(ChunkDone)["start_s"] == -123.5


def test_what_ran_before_a_chunk_began_is_not_part_of_it() -> None:
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.enter(0)
    rank.coroutines.passed(7.0)
    while rank.coroutines.turn():
        pass
    assert rank.last(ChunkDone)["passed_s"] == 0.0


def test_what_was_counted_comes_with_the_end_of_the_next_chunk_and_once_an_instance() -> None:
    rank = Rank()
    follower = Rank(tp_rank=1)
    for each in (rank, follower):
        each.plan()
        each.request()
        each.engine.step()
        each.counted.sent_bytes, each.counted.waited_s = 100, 0.5
        each.go(0)
    told = rank.last(ChunkDone)
    assert (told["sent_bytes"], told["waited_s"]) == (100, 0.5)
    assert ChunkDone not in follower.kinds(), "its leading rank speaks for the instance"
    rank.written[0] = "landed"  # history leaves home
    rank.engine.step()
    rank.go(1)
    told = rank.last(ChunkDone)
    assert told["chunk"] == 1
    assert (told["sent_bytes"], told["waited_s"]) == (0, 0.0), "nothing is told twice"


def test_what_a_broken_chunk_has_sent_is_told_with_the_next_one() -> None:
    rank = Rank()
    rank.breaks = {0}
    for seq, rid in enumerate("ab"):
        rank.plan(rid=rid, seq=seq)
        rank.request(rid)
        rank.engine.step()
    rank.counted.sent_bytes = 100
    rank.go(0, seq=0)
    assert ChunkDone not in rank.kinds()
    rank.breaks = set()
    rank.stop(seq=0)
    rank.engine.step()
    rank.go(0, seq=1)
    assert rank.last(ChunkDone)["sent_bytes"] == 100


def test_history_that_goes_to_others_is_told_by_who_gives_it() -> None:
    rank, joins = Rank(), Rank(instance=1)
    for each in (rank, joins):
        each.plan([(64, [0]), (64, [0, 1])])
        each.engine.step()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.written[0] = "landed"
    rank.engine.step()
    for each in (rank, joins):
        each.go(1)
        assert each.last(ChunkDone)["chunk"] == 1
    moved = sum(m.span.tokens for m in plan_layout([(64, (0,)), (64, (0, 1))], 1)[1].moves)
    assert moved > 0
    assert rank.last(ChunkDone)["moved_tokens"] == moved
    assert joins.last(ChunkDone)["moved_tokens"] == 0


def test_a_request_runs_from_the_start_of_its_first_chunk() -> None:
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    waiting = rank.engine.load
    assert (waiting.running, waiting.waiting) == (0, 1)
    seen: list[tuple[int, int]] = []
    rank.on_start = lambda: seen.append((rank.engine.load.running, rank.engine.load.waiting))
    rank.go(0)
    assert seen == [(1, 0)]


def test_a_dropped_task_drains_no_sooner_than_its_writes() -> None:
    """Decode gives the pages to others as soon as it hears that they are safe."""
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.stop()
    rank.engine.step()
    assert Drained not in rank.kinds()
    rank.written[0] = "landed"
    rank.engine.step()
    assert rank.kinds().count(Drained) == 1


def test_a_rank_that_loses_a_write_stays_in_step_with_its_partner() -> None:
    ranks = [Rank(tp_rank=0), Rank(tp_rank=1)]
    for rank in ranks:
        rank.plan([(64, [0]), (64, [0])])
        rank.request()
        rank.engine.step()
        rank.go(0)
    ranks[0].written[0], ranks[1].written[0] = "landed", "lost"
    for rank in ranks:
        rank.engine.step()
    states = [(t.prepared, t.announced, t.error) for r in ranks for t in r.engine._tasks.values()]
    assert states == [(1, True, "")] * 2, "both can be sent into the next chunk"
    assert ranks[1].last(WriteLost)["error"] == "KV write failed"
    for rank in ranks:
        rank.stop()
        rank.engine.step()
    assert [rank.last(Drained)["error"] for rank in ranks] == ["", "KV write failed"]
    assert ranks[1].last(WriteLost)["uncertain"], "parts of it may still arrive at decode"
    assert [rank.last(Drained)["uncertain"] for rank in ranks] == [False, True]


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_broken_chunk_fails_its_task(chunk: int) -> None:
    rank = Rank()
    rank.breaks.add(chunk)
    rank.plan()
    req = rank.request()
    for index in range(chunk + 1):
        rank.engine.step()
        rank.written.update(dict.fromkeys(rank.written, "landed"))
        rank.go(index)
    failed = rank.last(Failed)
    assert "the model broke" in failed["error"]
    rank.engine.step()
    assert rank.kinds().count(Ready) == chunk + 1, "it is not offered again"
    rank.stop()
    rank.engine.step()
    rank.engine.on_release(ReleaseOrder(seq=0, error=rank.last(Drained)["error"]))
    assert req.finished_reason.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    assert rank.allocator.available_size() == PAGES


def test_too_few_slots_fail_the_task_before_anybody_depends_on_it() -> None:
    rank = Rank()
    rank.plan([(PAGES + 1, [0])])
    rank.request()
    rank.engine.step()
    rank.engine.step()
    assert rank.kinds() == [Failed]
    assert "--max-total-tokens" in rank.last(Failed)["error"]


def test_a_task_dropped_while_its_grammar_compiles_is_answered_and_gone() -> None:
    rank = Rank()
    rank.plan()
    req = Mock(rid="r", return_logprob=False, metadata_buffer_index=3)
    rank.scheduler.grammar_manager.grammar_queue.append(req)
    rank.engine.step()
    assert rank.said == []
    rank.stop()
    rank.engine.step()
    rank.engine.on_release(ReleaseOrder(seq=0, error="decode is gone"))
    assert rank.scheduler.grammar_manager.grammar_queue == [], "SGLang must not run it later"
    assert "decode is gone" in req.finished_reason.message
    rank.scheduler.output_streamer.stream_output.assert_called_once()
    assert rank.engine.idle


def test_turns_and_tasks_start_in_the_pools_order() -> None:
    rank = Rank()
    rank.engine.on_stock(StockOrder(rid="a", seq=0))
    rank.plan([(64, [0])], rid="b", seq=1)
    rank.engine.on_stock(StockOrder(rid="c", seq=2))
    rank.request("b")
    for rid in ("a", "c"):
        assert rank.engine.holds_back(SimpleNamespace(rid=rid))
    assert not rank.engine.holds_back(SimpleNamespace(rid="a")), "it has its request"
    rank.engine.step()
    assert [request.rid for request in rank.admitted] == ["a"]
    first = Mock(rid="a", output_ids=[], to_finish=None, finished_reason=None)
    assert not rank.engine.adopt(first)
    rank.scheduler.waiting_queue.append(first)
    rank.engine.step()
    assert Ready not in rank.kinds(), "a chunk starts between SGLang's batches"
    first.output_ids.append(5)
    rank.engine.stamp_end(FakeBatch([first]))
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 1, "chunk": 0, "revision": 0, "found": None}
    assert len(rank.admitted) == 1
    rank.go(0, seq=1)
    rank.engine.step()
    assert [request.rid for request in rank.admitted] == ["a", "c"]


def test_a_turn_that_is_held_back_is_cancelled_alone() -> None:
    rank = Rank()
    rank.plan()
    for seq, rid in ((1, "r1"), (2, "r10")):
        rank.engine.on_stock(StockOrder(rid=rid, seq=seq))
    rank.engine.on_cancel(CancelOrder(seq=1))
    assert [fields["seq"] for kind, fields in rank.said if kind is StockEnded] == [1]
    assert rank.engine.holds_back(SimpleNamespace(rid="r10"))


def test_a_write_that_fails_while_history_leaves_may_still_arrive() -> None:
    """Decode must not get its pages back; the chunk that waited for the write fails."""
    rank = Rank()
    rank.plan()
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.engine.step()
    rank.enter(1)
    for _ in range(3):
        rank.coroutines.turn()
    assert rank.kinds()[-1] is Ready, "history cannot leave before its write has ended"
    rank.written[0] = "lost"
    while rank.coroutines.turn():
        pass
    assert "KV write failed" in rank.last(Failed)["error"]
    rank.written[1] = "landed"
    rank.stop()
    rank.engine.step()
    assert rank.last(Drained)["uncertain"]
