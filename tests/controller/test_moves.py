"""Running requests that move: who goes on with them, whatever happens on the way."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.homes import home_tokens
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import empty, phase_is
from tests.controller.going_on import stream
from tests.controller.one_server import DecodingInstance, OneServerPool
from tests.controller.roles import decoding, names, pool_of, turn


def on_its_way(pool: OneServerPool, request: PoolRequest) -> None:
    """All seats but the last turn away from decode, and the request leaves for that."""
    turn(pool, f"{len(pool.instances) - 1}p1d")
    pool.until(lambda: any(name.startswith("all of") for name in names(pool)))
    assert request.travels


def assert_finished(pool: OneServerPool, request: PoolRequest) -> None:
    """It has its whole answer, once, and nothing of it is left anywhere."""
    assert pool.answers[request.tokenized] == ["home finished"]
    assert (request.outcome, pool.lost_requests) == ("finished", [])
    assert len(request.output.tokens) == pool.seen[request.rid]
    assert empty(pool)


def test_output_goes_on_where_it_was_at_its_new_home() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    stream(pool, 0, request.seq, 4)
    pool.happen(f"0 generates a token of {request.seq}")  # which goes along unseen
    on_its_way(pool, request)
    pool.until(lambda: request.home == 3)
    pool.settle()
    assert pool.seen[request.rid] == 7
    assert_finished(pool, request)


def test_what_has_left_a_lost_source_whole_arrives_all_the_same() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    on_its_way(pool, request)
    pool.lose(0)
    pool.turn()
    pool.happen("all of")
    pool.until(lambda: request.home == 3)
    pool.confirm(0)
    pool.settle()
    assert (request.recalls, request.losses) == (0, 0)
    pool.fill(0)
    assert_finished(pool, request)


@pytest.mark.parametrize("confirmed_first", [True, False])
@pytest.mark.parametrize("back", [True, False], ids=["seat filled", "seat empty"])
def test_what_was_on_its_way_from_a_lost_source_is_computed_anew(
    confirmed_first: bool, back: bool
) -> None:
    """From all that it had, which its client has yet to see in part."""
    pool = pool_of("4b")
    request = decoding(pool)
    stream(pool, 0, request.seq, 2)
    pool.happen(f"0 generates a token of {request.seq}")
    on_its_way(pool, request)
    seq = request.seq
    pool.lose(0)
    if confirmed_first:
        pool.confirm(0)
        if back:
            pool.fill(0)
    pool.happen(f"3 loses its link for {seq}")
    pool.hear_all()
    if not confirmed_first:
        assert phase_is(request, Phase.DECODING), "its process may still write"
        pool.confirm(0)
    assert phase_is(request, Phase.WAITING)
    assert request.resumes is not None
    assert (len(request.resumes.tokens), request.resumes.sent) == (4, 3)
    assert request.losses == 1
    pool.settle()
    if not (confirmed_first and back):
        pool.fill(0)
    assert pool.seen[request.rid] == 6
    assert_finished(pool, request)


def test_a_target_may_be_the_next_life_of_an_instance_that_was_lost_under_it() -> None:
    """What the first life had of the plan is no more; what the next one says counts."""
    pool = pool_of("2b", policy="fixed-sp:2")
    request = pool.submit(100)
    pool.turn()
    assert request.plan is not None
    home, other = request.plan.instances
    pool.lose(other)
    pool.confirm(other)
    pool.fill(other)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lifecycle.on_seat_draining(home)
    pool.until(lambda: request.home == other)
    pool.settle()
    assert_finished(pool, request)


def test_a_source_may_have_ended_before_the_target_is_lost() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    on_its_way(pool, request)
    for seat in (0, 3):
        pool.lose(seat)
        pool.confirm(seat)
    assert phase_is(request, Phase.WAITING), "nobody is left who could write"
    turn(pool, "4b")
    for seat in (0, 3):
        pool.fill(seat)
    pool.settle()
    assert (request.recalls, request.losses) == (1, 1)
    assert_finished(pool, request)


def test_source_and_target_may_be_lost_both() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    on_its_way(pool, request)
    for seat in (0, 3):
        pool.lose(seat)
    turn(pool, "4b")
    for seat in (3, 0):
        pool.confirm(seat)
        pool.fill(seat)
    pool.settle()
    assert (request.recalls, request.losses) == (1, 1)
    assert_finished(pool, request)


def test_a_source_that_cannot_send_goes_on_when_the_target_has_let_go() -> None:
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    on_its_way(pool, request)
    pool.happen(f"0 cannot send {request.seq}")
    pool.hear_all()
    assert pool.instances[0].used, "it keeps the request"
    assert request.travels
    pool.happen("1 takes an order")
    pool.until(lambda: not request.travels)
    assert request.home == 0
    turn(pool, "2b")
    pool.settle()
    assert pool.moves_seen == []
    assert_finished(pool, request)


def test_a_target_that_has_all_goes_on_although_the_source_says_it_failed() -> None:
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    on_its_way(pool, request)
    pool.happen("all of")
    pool.happen(f"0 cannot send {request.seq}")
    pool.happen("the controller hears 0")  # which tells the target to forget it
    pool.settle()
    assert pool.moves_seen == [(request.rid, 0, 1)]
    assert_finished(pool, request)


def test_a_target_that_was_lost_after_it_went_on_was_home() -> None:
    """What it has streamed counts, and its source has nothing any more."""
    pool = pool_of("4b")
    request = decoding(pool)
    on_its_way(pool, request)
    pool.happen("all of")
    stream(pool, 3, request.seq, 2)
    assert request.home == 3
    turn(pool, "4b")
    pool.lose(3)
    pool.confirm(3)
    pool.settle()
    assert request.recalls == 1
    assert request.resumes is not None
    assert len(request.resumes.tokens) == 3
    pool.fill(3)
    assert_finished(pool, request)


def test_what_is_retracted_before_it_leaves_is_computed_anew() -> None:
    """The order to let it go crosses the retraction."""
    pool = pool_of("4b")
    request = decoding(pool)
    seq = request.seq
    turn(pool, "3p1d")
    pool.until(lambda: any("takes" in name and "out" in name for name in names(pool)))
    pool.happen(f"0 retracts {seq}")
    pool.hear_all()
    assert phase_is(request, Phase.WAITING)
    assert pool.ledger.free_tokens()[3] < pool.capacity, "the target has yet to let go"
    pool.settle()
    assert request.recalls == 1
    assert_finished(pool, request)


def test_so_is_what_is_retracted_while_its_target_gets_ready() -> None:
    """The target says that it is ready right after that."""
    pool = pool_of("4b")
    request = decoding(pool)
    seq = request.seq
    turn(pool, "3p1d")
    pool.turn()
    pool.happen("3 takes an order")
    pool.happen(f"0 retracts {seq}")
    pool.happen("the controller hears 0.0")
    pool.happen(f"3 gets ready for {seq}")
    pool.happen("the controller hears 3.0")
    pool.settle()
    assert pool.moves_seen[1:] == [], "it moves, if at all, from its next home"
    assert request.recalls == 1
    assert_finished(pool, request)


def test_a_target_gets_nothing_new_under_an_id_before_it_has_let_go() -> None:
    """Orders come in order: the end of the move before the request's next plan."""
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    seq = request.seq
    turn(pool, "1p1d")
    pool.until(lambda: any("takes" in name and "out" in name for name in names(pool)))
    turn(pool, "1d1p")
    pool.happen(f"0 retracts {seq}")
    pool.hear_all()
    pool.turn()
    assert request.plan is not None
    assert request.plan.home == 1
    at = pool.instances[1]
    assert isinstance(at, DecodingInstance)
    pool.happen("1 takes an order")
    assert seq not in at.coming
    assert request.seq not in at.tasks
    pool.settle()
    assert_finished(pool, request)


def test_a_short_prompt_comes_back_into_its_own_queue() -> None:
    pool = pool_of("2b")
    request = pool.submit(50, plan=[(50, [0])])
    pool.until(lambda: request.first_token_s is not None)
    turn(pool, "1p1d")
    while not any(name.startswith("all of") for name in names(pool)):
        pool.turn()
        next(move for move in pool.moves() if not (move.fault or "ends" in move.name)).do()
    pool.happen(f"1 loses its link for {request.seq}")
    pool.until(lambda: not request.travels)
    assert phase_is(request, Phase.STOCK)
    turn(pool, "2b")
    pool.settle()
    assert pool.answers[request.tokenized] == ["stock finished"]
    assert empty(pool)


def test_an_answer_under_way_ends_a_move() -> None:
    """Its client has all of it, but nobody has said yet that it has ended."""
    pool = pool_of("4b")
    request = decoding(pool)
    turn(pool, "3p1d")
    pool.turn()
    pool.happen(f"0 decodes {request.seq} to its end")
    pool.happen("the controller hears 0.0")
    assert request.output.complete
    pool.turn()
    pool.settle()
    assert pool.moves_seen == []
    assert_finished(pool, request)


def test_more_output_than_was_promised_needs_as_much_room() -> None:
    request = pool_of("1b").request(100)
    promised = home_tokens(request, 1)
    request.output.tokens.extend(range(2 * request.output_tokens))
    assert home_tokens(request, 1) == 100 + 2 * request.output_tokens + 1 > promised


@pytest.mark.parametrize("arrives", [True, False])
def test_an_abort_that_crosses_the_way_out_is_not_lost(arrives: bool) -> None:
    """The source has taken the request out and hears of the abort after that."""
    pool = pool_of("4b")
    request = decoding(pool)
    turn(pool, "3p1d")
    pool.until(lambda: any("takes" in name and "out" in name for name in names(pool)))
    pool.happen(f"0 takes {request.seq} out")
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.happen("0 takes an order")
    pool.until(lambda: any(name.startswith("all of") for name in names(pool)))
    if not arrives:
        pool.happen(f"3 loses its link for {request.seq}")
    pool.settle()
    assert request.outcome == "aborted"
    assert pool.answers[request.tokenized] == ["home failed"]
    assert pool.moves_seen == [(request.rid, 0, 3)] * arrives
    assert empty(pool)


def test_an_aborted_request_whose_source_is_lost_on_the_way_is_answered() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    on_its_way(pool, request)
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.lose(0)
    pool.happen(f"3 loses its link for {request.seq}")
    pool.hear_all()
    assert pool.answers[request.tokenized] == ["controller"]
    pool.confirm(0)
    pool.settle()
    assert request.outcome == "aborted"
    pool.fill(0)
    assert empty(pool)


def test_an_abort_on_the_way_is_done_by_whoever_has_it_then() -> None:
    pool = pool_of("4b")
    request = decoding(pool)
    turn(pool, "3p1d")
    pool.until(lambda: any(name.startswith("all of") for name in names(pool)))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    assert request.travels
    pool.settle()
    assert request.outcome == "aborted"
    assert pool.answers[request.tokenized] == ["home failed"]
    assert empty(pool)


def test_a_seat_that_is_to_leave_lets_its_requests_go_on_elsewhere() -> None:
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    pool.lifecycle.on_seat_draining(0)
    pool.until(lambda: request.moved_to == 1)
    pool.until(lambda: pool.lifecycle.seat_idle(0))
    pool.settle()
    assert request.outcome == "finished"


def test_weights_wait_until_nothing_is_on_its_way() -> None:
    pool = pool_of("2b")
    request = decoding(pool, plan=[(50, [0]), (50, [0])])
    assert not pool.lifecycle.chunk_running
    turn(pool, "1p1d")
    pool.turn()
    assert pool.lifecycle.chunk_running
    pool.settle()
    assert request.moved_to == 1
    assert not pool.lifecycle.chunk_running
