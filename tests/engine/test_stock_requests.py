"""One-instance requests are followed through SGLang's queues until they have left them all."""

from __future__ import annotations

import time
from concurrent.futures import Future
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from sglang_cdsp.engine.stock_requests import StockTracker, take_compiling
from sglang_cdsp.engine.tasks import StockRequest
from sglang_cdsp.protocol.messages import FirstToken, StockBatch, StockEnded
from tests.engine.fake_stock import FakeBatch, FakeReporter, FakeScheduler, Prefill


class FakeReq:
    """SGLang's request, as far as the tracker looks at it."""

    def __init__(self, rid: str) -> None:
        self.rid = rid
        self.output_ids: list[int] = []
        self.to_finish: Any = None
        self.finished_reason: Any = None
        self.time_stats = SimpleNamespace(wait_queue_entry_time=0.0, forward_entry_time=0.0)


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
def reporter() -> FakeReporter:
    return FakeReporter()


@pytest.fixture
def tracker(scheduler: FakeScheduler, reporter: FakeReporter) -> StockTracker:
    def abort(rid: str) -> None:
        """SGLang's, as far as it matters: whoever's id begins so is aborted."""
        for req in (*scheduler.waiting_queue, *scheduler.grammar_manager.grammar_queue):
            if req.rid.startswith(rid):
                req.to_finish = FINISH_ABORT("Aborted by AbortReq.")

    return StockTracker(scheduler, reporter, abort)  # type: ignore[arg-type]


def begun(tracker: StockTracker, req: FakeReq, seq: int = 1) -> StockRequest:
    request = StockRequest(seq, req.rid)
    tracker.begin(request)
    tracker.adopt(req)
    return request


def place(scheduler: FakeScheduler, queue: str, req: FakeReq) -> None:
    """Put a request into one of SGLang's places, and take it out of all others."""
    vars(scheduler).update(vars(FakeScheduler()))
    if queue == "chunked_req":
        scheduler.chunked_req = req
    elif queue == "last_batch":
        scheduler.last_batch = FakeBatch([req])
    elif queue:
        attrgetter(queue)(scheduler).append(req)


QUEUES = (
    "waiting_queue",
    "grammar_manager.grammar_queue",
    "disagg_prefill_bootstrap_queue.queue",
    "disagg_prefill_inflight_queue",
    "running_batch.reqs",
    "last_batch",
    "chunked_req",
)


def test_a_request_is_over_when_no_queue_has_it(
    tracker: StockTracker, scheduler: FakeScheduler, reporter: FakeReporter
) -> None:
    req = FakeReq("a")
    request = begun(tracker, req)
    for queue in QUEUES:
        place(scheduler, queue, req)
        tracker.poll()
        assert bool(tracker), queue
        assert reporter.said == []
    tracker.stamp_start(FakeBatch([req]))
    req.output_ids.append(5)
    tracker.stamp_end(FakeBatch([req]))
    place(scheduler, "", req)
    tracker.poll()
    assert not tracker
    first, ended = reporter.said
    assert first == (FirstToken, {"seq": 1, "at_s": request.end_s})
    times = {"start_s": request.start_s, "end_s": request.end_s}
    assert ended == (StockEnded, {"seq": 1, "error": "", **times})
    assert request.start_s is not None
    assert request.end_s is not None
    assert request.start_s <= request.end_s


def test_it_prefills_until_its_first_token(tracker: StockTracker, reporter: FakeReporter) -> None:
    req = FakeReq("a")
    assert not tracker.prefilling()
    begun(tracker, req)
    tracker.stamp_end(FakeBatch([req]))
    assert tracker.prefilling(), "a chunk of its prompt ran, no token yet"
    assert reporter.said == []
    req.output_ids.append(5)
    tracker.stamp_end(FakeBatch([req]))
    tracker.stamp_end(FakeBatch([req]))
    assert not tracker.prefilling()
    assert [kind for kind, _ in reporter.said] == [FirstToken]


def test_the_first_batch_is_its_start(tracker: StockTracker) -> None:
    req = FakeReq("a")
    request = begun(tracker, req)
    tracker.stamp_start(FakeBatch([FakeReq("other")]))
    assert request.start_s is None
    tracker.stamp_start(FakeBatch([req]))
    start_s = request.start_s
    tracker.stamp_start(FakeBatch([req]))
    assert request.start_s == start_s


@pytest.mark.parametrize(
    ("to_finish", "finished", "tokens", "error"),
    [
        (FINISH_ABORT("too long"), None, 0, "too long"),
        (None, FINISH_ABORT("broken"), 1, "broken"),
        (None, None, 0, "aborted"),
        (None, FINISH_LENGTH(length=1), 1, ""),
    ],
)
def test_how_it_ended(
    tracker: StockTracker,
    reporter: FakeReporter,
    to_finish: Any,
    finished: Any,
    tokens: int,
    error: str,
) -> None:
    req = FakeReq("a")
    begun(tracker, req)
    req.output_ids += [1] * tokens
    tracker.stamp_end(FakeBatch([req]))
    req.to_finish, req.finished_reason = to_finish, finished
    tracker.poll()
    kind, said = reporter.said[-1]
    assert (kind, said["error"]) == (StockEnded, error)


def test_a_request_that_never_became_one(tracker: StockTracker, reporter: FakeReporter) -> None:
    tracker.begin(StockRequest(1, "a"))
    tracker.poll()
    ((kind, said),) = reporter.said
    assert (kind, said["error"]) == (StockEnded, "rejected on arrival at its instance")


def test_a_request_whose_grammar_compiles_is_awaited(
    tracker: StockTracker, scheduler: FakeScheduler, reporter: FakeReporter
) -> None:
    req = FakeReq("a")
    tracker.begin(StockRequest(1, "a"))
    place(scheduler, "grammar_manager.grammar_queue", req)
    tracker.poll()
    assert tracker
    assert reporter.said == []


def test_an_id_used_again_is_another_request(tracker: StockTracker, reporter: FakeReporter) -> None:
    first, second = FakeReq("a"), FakeReq("a")
    begun(tracker, first, 1)
    begun(tracker, second, 2)
    second.output_ids.append(5)
    tracker.stamp_end(FakeBatch([second]))
    assert [said["seq"] for _, said in reporter.said] == [2]
    tracker.poll()
    assert [said["error"] for _, said in reporter.said[1:]] == ["aborted", ""]


@pytest.mark.parametrize("queue", ["waiting_queue", "grammar_manager.grammar_queue"])
def test_one_request_is_cancelled_and_none_whose_id_begins_alike(
    tracker: StockTracker, scheduler: FakeScheduler, queue: str
) -> None:
    longer, wanted = FakeReq("r10"), FakeReq("r1")
    place(scheduler, queue, longer)
    attrgetter(queue)(scheduler).append(wanted)
    for seq, req in enumerate((longer, wanted)):
        tracker.begin(StockRequest(seq, req.rid))
        if queue == "waiting_queue":  # SGLang queues a request once its grammar is there
            tracker.adopt(req)
    tracker.cancel(1)
    assert wanted.to_finish is not None
    assert longer.to_finish is None
    assert (longer.rid, wanted.rid) == ("r10", "r1")


def test_a_request_is_taken_away_while_its_grammar_compiles(scheduler: FakeScheduler) -> None:
    req: Any = FakeReq("a")
    req.grammar = Future()
    place(scheduler, "grammar_manager.grammar_queue", FakeReq("ab"))
    assert take_compiling(scheduler, "a") is None
    scheduler.grammar_manager.grammar_queue.append(req)
    compiling = req.grammar
    assert take_compiling(scheduler, "a") is req
    assert compiling.cancelled()
    assert [r.rid for r in scheduler.grammar_manager.grammar_queue] == ["ab"]


def test_a_prefill_batch_is_measured_with_all_that_is_in_it(
    tracker: StockTracker, reporter: FakeReporter
) -> None:
    """Others' requests share its time, so they count too; a batch without ours says nothing."""
    ours, other = FakeReq("a"), FakeReq("other")
    begun(tracker, ours)
    batch = FakeBatch([ours, other], Prefill(True), [256, 0], [100, 30])
    before_s = time.monotonic()
    tracker.stamp_start(batch)
    tracker.stamp_end(batch)
    ((kind, said),) = reporter.said
    assert kind is StockBatch
    assert said["parts"] == [(256, 100), (0, 30)]
    assert before_s <= said["start_s"] <= said["at_s"]
    tracker.stamp_start(FakeBatch([other], Prefill(True), [0], [30]))
    tracker.stamp_end(FakeBatch([other], Prefill(True), [0], [30]))
    assert len(reporter.said) == 1


def test_the_queue_time_of_a_stock_request_counts_from_its_arrival_at_the_pool(
    tracker: StockTracker,
) -> None:
    req = FakeReq("a")
    tracker.begin(StockRequest(1, "a", arrival_s=50.0))
    tracker.count_waiting_from_arrival()
    tracker.adopt(req)
    tracker.count_waiting_from_arrival()
    assert req.time_stats.wait_queue_entry_time == 0.0, "SGLang takes 0 for: not queued yet"
    req.time_stats.wait_queue_entry_time = 80.0
    tracker.count_waiting_from_arrival()
    assert req.time_stats.wait_queue_entry_time == 50.0
    req.time_stats.wait_queue_entry_time = req.time_stats.forward_entry_time = 90.0
    tracker.count_waiting_from_arrival()
    assert req.time_stats.wait_queue_entry_time == 90.0, "its forward has begun"
