"""Moves that begin while a prompt's last chunk runs: its KV goes ahead to who is to decode it."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.move import Move, Step, rows_ahead
from sglang_cdsp.controller.moves import SPARE_LANES
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.one_server import OneServerPool
from tests.controller.roles import names, pool_of, turn


def in_last_chunk(pool: OneServerPool) -> PoolRequest:
    """A request whose home only prefills, and whose last chunk has started."""
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.RUNNING) and request.next_chunk == 1)
    return request


def move_of(pool: OneServerPool, request: PoolRequest) -> Move | None:
    return pool.lifecycle._moves._moves.get(request.seq)


def asked(pool: OneServerPool, request: PoolRequest) -> Move:
    """The target is asked, gets ready, and home hears of it, all inside the last chunk."""
    pool.turn()
    move = move_of(pool, request)
    assert move is not None
    do(pool, f"{move.target} takes an order")
    do(pool, f"{move.target} gets ready for")
    do(pool, f"the controller hears {move.target}.0")
    assert move.step is Step.LEAVING
    assert phase_is(request, Phase.RUNNING)
    return move


def do(pool: OneServerPool, beginning: str) -> None:
    """Let the first thing happen whose name begins so."""
    next(move for move in pool.moves() if move.name.startswith(beginning)).do()


def hear(pool: OneServerPool, seat: int) -> None:
    """The controller hears all that an instance has said."""
    while any(name.startswith(f"the controller hears {seat}.") for name in names(pool)):
        do(pool, f"the controller hears {seat}.")


def left_first(pool: OneServerPool, request: PoolRequest) -> Move:
    """Home has let the request go, and another member holds KV of it still."""
    move = asked(pool, request)
    seq = request.seq
    pool.until(lambda: phase_is(request, Phase.RELEASING))
    while seq in pool.instances[0].tasks:
        do(pool, "0 takes an order")
    do(pool, f"0 takes {seq} out")
    hear(pool, 0)
    pool.turn()
    assert phase_is(request, Phase.RELEASING)
    assert (move.step, move.left, request.travels) == (Step.LEAVING, True, False)
    return move


def assert_finished(pool: OneServerPool, request: PoolRequest) -> None:
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert (request.outcome, pool.lost_requests) == ("finished", [])
    assert len(request.output.tokens) == pool.seen[request.rid]
    assert empty(pool)


def test_the_target_is_asked_when_the_last_chunk_has_started_and_not_before() -> None:
    pool = pool_of("2p1d")
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.RUNNING))
    pool.turn()
    assert request.next_chunk == 0
    assert move_of(pool, request) is None
    pool.until(lambda: request.next_chunk == 1 and phase_is(request, Phase.RUNNING))
    move = asked(pool, request)
    assert (move.source, move.target, move.ahead) == (0, 2, 100)
    assert pool.ledger.decoding(2) == 1, "the next one sees that it comes"
    assert_finished(pool, request)
    assert pool.moves_seen == [(request.rid, 0, 2)]
    assert [(way.rows, way.ahead) for way in request.moves] == [(100, 100)]


def test_home_decodes_nothing_where_the_target_is_ready_in_time() -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    asked(pool, request)
    pool.until(lambda: any(name.startswith("all of") for name in names(pool)))
    assert request.carried is not None
    assert len(request.carried.tokens) == 1, "the first token, which the prompt's chunk gave"
    assert_finished(pool, request)


def test_the_freest_decode_seat_is_asked() -> None:
    """Those that are on their way count as if they were there."""
    pool = pool_of("2p2d")
    first = in_last_chunk(pool)
    assert asked(pool, first).target == 2
    second = pool.submit(100, plan=[(100, [1])])
    pool.until(lambda: move_of(pool, second) is not None)
    move = move_of(pool, second)
    assert move is not None
    assert move.target == 3
    pool.settle()
    assert empty(pool)


def test_what_a_decode_seat_has_cached_of_it_counts_as_free() -> None:
    pool = pool_of("2p2d")
    cached: dict[int, int] = {3: 60}
    pool.lifecycle._moves._cached = lambda request: cached
    first = in_last_chunk(pool)
    assert asked(pool, first).target == 3
    second = pool.submit(100, plan=[(100, [1])])
    pool.until(lambda: move_of(pool, second) is not None)
    move = move_of(pool, second)
    assert move is not None
    assert move.target == 2, "an instance where nobody decodes is freer all the same"
    pool.settle()
    assert empty(pool)


def test_what_the_target_has_cached_is_told_to_the_source_and_kept() -> None:
    pool = pool_of("2p1d", page_size=16)
    request = in_last_chunk(pool)
    pool.turn()
    do(pool, "2 takes an order")
    do(pool, f"2 has a page cached of {request.seq}")
    do(pool, "the controller hears 2.0")
    assert_finished(pool, request)
    (way,) = request.moves
    assert (way.ahead, way.cached) == (80, 16)
    assert way.to_dict(0.0)["cached"] == 16


def test_it_goes_on_at_the_target_when_all_are_done_with_its_plan() -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    left_first(pool, request)
    assert not any(name.startswith("all of") for name in names(pool))
    pool.until(lambda: request.home == 2)
    assert_finished(pool, request)


def test_a_source_that_is_lost_before_that_is_a_home_that_is_lost() -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    left_first(pool, request)
    pool.lose(0)
    assert request.recalled
    pool.until(lambda: not len(pool.lifecycle._moves))
    pool.confirm(0)
    pool.fill(0)
    assert_finished(pool, request)
    assert (request.recalls, request.losses) == (1, 1)


@pytest.mark.parametrize("left", [False, True], ids=["in the chunk", "when it has left"])
def test_a_target_that_is_lost_leaves_it_at_home(left: bool) -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    (left_first if left else asked)(pool, request)
    pool.lose(2)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    assert request.home == 0
    pool.confirm(2)
    assert_finished_with(pool, request, refilled=2)


def assert_finished_with(pool: OneServerPool, request: PoolRequest, *, refilled: int) -> None:
    pool.fill(refilled)
    assert_finished(pool, request)
    assert request.recalls == 0


def test_a_target_that_refuses_is_asked_again_later() -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    pool.turn()
    do(pool, "2 takes an order")
    do(pool, f"2 does not take {request.seq}")
    pool.hear_all()
    assert move_of(pool, request) is None
    pool.turn()
    assert move_of(pool, request) is None
    pool.now_s += 2.0
    pool.turn()
    assert move_of(pool, request) is not None
    assert_finished(pool, request)
    assert pool.moves_seen == [(request.rid, 0, 2)]


def test_a_source_that_cannot_send_ahead_goes_on() -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    move = asked(pool, request)
    cannot = f"0 cannot send ahead {request.seq}"
    pool.until(lambda: cannot in names(pool))
    pool.happen(cannot)
    hear(pool, 0)
    assert move.step is Step.OFF
    assert_finished(pool, request)
    assert request.recalls == 0


@pytest.mark.parametrize("left", [False, True], ids=["in the chunk", "when it has left"])
@pytest.mark.parametrize("arrives", [True, False])
def test_a_client_that_leaves_is_heard_by_who_has_the_request(left: bool, arrives: bool) -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    (left_first if left else asked)(pool, request)
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    if not arrives:
        pool.lose(2)
        pool.confirm(2)
    pool.settle()
    assert request.outcome == "aborted"
    assert len(pool.answers[request.tokenized]) == 1
    if not arrives:
        pool.fill(2)
    assert empty(pool)


def test_a_member_that_is_lost_calls_it_off_and_the_next_plan_moves_anew() -> None:
    pool = pool_of("3p1d")
    request = in_last_chunk(pool)
    seq = request.seq
    move = asked(pool, request)
    pool.lose(1)
    pool.confirm(1)
    pool.fill(1)
    pool.until(lambda: request.seq != seq and request.plan is not None)
    assert move.step is Step.OFF
    assert_finished(pool, request)
    assert (request.recalls, request.losses) == (1, 1)
    assert [target for _, _, target in pool.moves_seen] == [3]


def test_a_chunk_that_fails_calls_it_off() -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    asked(pool, request)
    do(pool, "1 takes an order")
    do(pool, "0 takes an order")
    do(pool, f"1 fails in chunk 1 of {request.seq}")
    pool.settle()
    assert request.outcome == "failed"
    assert pool.moves_seen == []
    assert empty(pool)


@pytest.mark.parametrize("left", [False, True], ids=["in the chunk", "when it has left"])
def test_a_target_that_turns_away_gets_nothing(left: bool) -> None:
    pool = pool_of("2p1d")
    request = in_last_chunk(pool)
    (left_first if left else asked)(pool, request)
    turn(pool, "1p1d1p")
    assert_finished(pool, request)
    assert pool.moves_seen == [(request.rid, 0, 1)]
    assert request.recalls == 0


def test_a_target_that_is_to_leave_gets_nothing() -> None:
    pool = pool_of("2p2d")
    request = in_last_chunk(pool)
    target = asked(pool, request).target
    pool.lifecycle.on_seat_draining(target)
    pool.until(lambda: move_of(pool, request) is None)
    assert pool.lifecycle.seat_idle(target)
    pool.now_s += 2.0
    pool.until(lambda: request.moved_to is not None)
    assert request.moved_to == {2: 3, 3: 2}[target]
    assert_finished(pool, request)


def test_where_no_seat_has_room_it_decodes_at_home_until_one_has() -> None:
    pool = pool_of("3b", capacity=256)
    other = pool.submit(150, plan=[(75, [2]), (75, [2])])
    pool.until(lambda: phase_is(other, Phase.DECODING))
    turn(pool, "2p1d")
    request = in_last_chunk(pool)
    pool.turn()
    assert move_of(pool, request) is None
    pool.until(lambda: phase_is(request, Phase.DECODING))
    assert request.home == 0
    pool.settle()
    assert request.outcome == other.outcome == "finished"
    assert empty(pool)


def test_chunks_keep_lanes_of_their_own() -> None:
    lanes = LaneTable(SPARE_LANES + 2)
    assert lanes.take("chunk", (0, 1)) == 0
    assert lanes.take("first", (0, 2), SPARE_LANES) == 1
    assert lanes.take("second", (0, 3), SPARE_LANES) is None, "the rest is for chunks"
    assert lanes.take("elsewhere", (1, 3), SPARE_LANES) == 1
    assert lanes.give_back("chunk")
    assert lanes.take("second", (0, 3), SPARE_LANES) == 0


def test_whole_pages_go_ahead_as_far_as_output_is_known() -> None:
    request = pool_of("1b").request(100)
    assert rows_ahead(request, 1) == 100
    assert rows_ahead(request, 16) == 96
    request.output.tokens.append(7)
    assert rows_ahead(request, 1) == 100, "its first token has no KV yet"
    request.output.tokens.extend(range(30))
    assert rows_ahead(request, 16) == 128
    assert rows_ahead(request, 256) == 0
