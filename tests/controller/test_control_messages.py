"""Control messages at a pool that works: single cases. Any order: `test_any_control.py`."""

from __future__ import annotations

import pytest
from sglang.srt.managers.io_struct import (
    FlushCacheReqInput,
    FlushCacheReqOutput,
    GetInternalStateReq,
    UpdateWeightFromDiskReqOutput,
)

from sglang_cdsp.controller.control_messages import SETTLE_S
from sglang_cdsp.controller.phases import Phase
from tests.controller.cases import TWO_CHUNKS, with_pages
from tests.controller.fake_control import (
    CONTINUE,
    FLUSH,
    NEW_WEIGHTS,
    NEW_WEIGHTS_OLD_CACHE,
    PAUSE,
    RELEASE,
    RESUME,
    ControlledPool,
)


@pytest.fixture
def pool() -> ControlledPool:
    return ControlledPool(size=4, policy="threshold:1000")


def test_a_question_goes_out_while_a_chunk_runs(pool: ControlledPool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: request.phase is Phase.RUNNING)
    question = GetInternalStateReq()
    pool.send(question)
    assert pool.forwarded == [question]


def test_new_weights_come_between_two_chunks_where_the_cache_stays(pool: ControlledPool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: request.phase is Phase.RUNNING)
    pool.send(NEW_WEIGHTS_OLD_CACHE)
    assert pool.forwarded == []
    pool.until(lambda: bool(pool.forwarded))
    assert request.next_chunk == 1
    pool.settle()
    assert request.outcome == "finished"


def test_new_weights_that_flush_wait_for_all_kv_to_be_freed(pool: ControlledPool) -> None:
    first = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: first.phase is Phase.RUNNING)
    pool.send(NEW_WEIGHTS)
    second = with_pages(pool, [(50, [2, 3])], room=8)
    pool.until(lambda: first.phase is Phase.RELEASING)
    assert pool.forwarded == []
    assert second.phase is Phase.WAITING, "it gets no slots before the flush"
    pool.settle()
    assert pool.forwarded == [NEW_WEIGHTS]
    assert second.outcome == "finished"


def test_aborted_requests_are_out_of_the_way_before_new_weights(pool: ControlledPool) -> None:
    """Their clients are answered while their chunk still runs: SGLang takes the pool for idle."""
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: request.phase is Phase.RUNNING)
    pool.lifecycle.on_abort("", "new weights", everything=True)
    pool.send(NEW_WEIGHTS)
    pool.settle()
    assert pool.forwarded == [NEW_WEIGHTS]
    assert request.outcome == "aborted"


def test_a_pause_lets_the_running_chunk_end_and_starts_no_other(pool: ControlledPool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    other = with_pages(pool, [(40, [2, 3])], room=8, bound=False)
    pool.until(lambda: request.phase is Phase.RUNNING)
    pool.send(PAUSE)
    pool.settle()
    assert pool.forwarded == [PAUSE]
    assert request.phase is Phase.BOUND
    assert request.next_chunk == 1
    assert other.phase in (Phase.WAITING, Phase.BOUND, Phase.ENDED)
    late = with_pages(pool, [(40, [1, 2])], room=9)
    pool.settle()
    assert late.phase is Phase.WAITING
    pool.send(CONTINUE)
    pool.settle()
    assert [request.outcome, other.outcome, late.outcome] == ["finished"] * 3


def test_a_paused_request_with_kv_refuses_new_weights_that_flush(pool: ControlledPool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: request.phase is Phase.RUNNING)
    pool.send(PAUSE)
    pool.send(NEW_WEIGHTS)
    pool.settle()
    [answer] = pool.refused
    assert isinstance(answer, UpdateWeightFromDiskReqOutput)
    assert not answer.success
    assert "/continue_generation" in answer.message
    pool.send(NEW_WEIGHTS_OLD_CACHE)
    assert pool.forwarded == [PAUSE, NEW_WEIGHTS_OLD_CACHE]
    pool.send(CONTINUE)
    pool.settle()
    assert request.outcome == "finished"


def test_nothing_starts_in_released_memory(pool: ControlledPool) -> None:
    pool.send(RELEASE)
    request = with_pages(pool, TWO_CHUNKS)
    pool.settle()
    assert request.phase is Phase.WAITING
    pool.send(RESUME)
    pool.settle()
    assert request.outcome == "finished"


def test_a_flush_is_refused_while_there_are_requests(pool: ControlledPool) -> None:
    request = with_pages(pool, TWO_CHUNKS, bound=False)
    pool.send(FLUSH)
    assert pool.refused == [], "it may be over in a moment"
    pool.now_s += SETTLE_S
    pool.control.serve(pool.lifecycle)
    [answer] = pool.refused
    assert isinstance(answer, FlushCacheReqOutput)
    assert not answer.success
    assert pool.forwarded == []
    pool.settle()
    assert request.outcome == "finished"
    pool.send(FLUSH)
    assert pool.forwarded == [FLUSH]


def test_a_flush_waits_as_long_as_it_may(pool: ControlledPool) -> None:
    waits = FlushCacheReqInput(timeout_s=1e6)
    with_pages(pool, TWO_CHUNKS)
    pool.send(waits)
    pool.send(waits)
    assert len(pool.refused) == 1, "one at a time"
    pool.settle()
    assert pool.forwarded == [waits]


def test_a_flush_whose_time_is_over_is_refused(pool: ControlledPool) -> None:
    request = pool.submit(100, room=5)
    pool.send(FlushCacheReqInput(timeout_s=3.0))
    pool.turn()
    assert pool.refused == []
    pool.now_s += 4.0
    pool.turn()
    assert [answer.success for answer in pool.refused] == [False]
    assert "timed out" in pool.refused[0].message
    assert request.phase is Phase.ARRIVED


def test_a_flush_is_refused_while_slots_are_freed_of_a_request_that_lost_its_id(
    pool: ControlledPool,
) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.lifecycle.abort(request, "no longer wanted")
    assert request.phase is Phase.DRAINING
    again = pool.submit(50, rid=request.rid)
    pool.lifecycle.abort(again, "no longer wanted")
    assert pool.lifecycle.requests == ()
    pool.send(FLUSH)
    assert pool.forwarded == []
    pool.settle()  # takes seconds
    assert [answer.success for answer in pool.refused] == [False]
    pool.send(FLUSH)
    assert pool.forwarded == [FLUSH]


def test_a_flush_waits_for_what_is_as_good_as_over(pool: ControlledPool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: request.phase is Phase.RELEASING)
    pool.send(FLUSH)
    assert pool.forwarded == []
    while pool.lifecycle.holding:  # at once: no time passes
        next(move for move in pool.moves() if not move.fault).do()
    pool.control.serve(pool.lifecycle)
    assert pool.forwarded == [FLUSH]
    assert pool.refused == []
