"""Instances that are lost: what ends, what is spared, and what waits for the confirmed end.

Each kind of request in each of its phases, by what the lost instance had of it. The fakes let the
lost process go on until its end is confirmed, and object to decode's pages being given away before.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

import pytest

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.presence import Stand
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.types import Plan, PlannedChunk
from tests.controller.cases import (
    ROOM,
    TWO_CHUNKS,
    empty,
    every_report,
    phase_is,
    with_pages,
)
from tests.controller.fake_pool import Chunks, FakePool

WIDE: Chunks = [(64, [0, 1]), (36, [0, 1, 2])]
SMALL: Chunks = [(16, [0]), (80, [0, 1])]
UNAVAILABLE = int(HTTPStatus.SERVICE_UNAVAILABLE)


def between_chunks(pool: FakePool, plan: Chunks) -> PoolRequest:
    """A request whose first chunk has run and whose second has not started."""
    request = with_pages(pool, plan)
    pool.until(lambda: request.next_chunk == 1 and request.phase is Phase.BOUND)
    return request


def in_chunk(pool: FakePool, plan: Chunks, chunk: int) -> PoolRequest:
    """A request with all members inside a chunk."""
    request = with_pages(pool, plan)
    pool.until(lambda: len(pool.entered[(request.seq, chunk)]) == len(plan[chunk][1]))
    return request


def draining(pool: FakePool, *undrained: int) -> PoolRequest:
    """A request of two members that is computed; some of them still write to decode."""
    request = with_pages(pool, [(100, [0, 1])])
    held = tuple(f"write of 0 at {me}." for me in undrained)
    for _ in range(1000):
        pool.turn()
        moves = [m for m in pool.moves() if not m.fault and not m.name.startswith(held)]
        if not moves:
            break
        moves[0].do()
    assert phase_is(request, Phase.DRAINING)
    assert {me for me, _ in request.drained} == {0, 1} - set(undrained)
    return request


def assert_lost(pool: FakePool, request: PoolRequest) -> None:
    """Its client has its error, which names what was lost."""
    assert pool.answers[request.tokenized] == ["controller"]
    assert pool.statuses[request.tokenized] == UNAVAILABLE
    assert "instance" in request.error
    assert "killed by a test" in request.error
    assert pool.lost_requests == [request]


def assert_ends_with_confirmation(pool: FakePool, request: PoolRequest, seat: int) -> None:
    """Decode and the other instances' slots wait for the end of the lost process."""
    pool.settle()
    assert request.phase is not Phase.ENDED
    assert ROOM not in pool.told_failed
    pool.confirm(seat)
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    assert ROOM in pool.told_failed
    assert empty(pool)


# -- what was there ---------------------------------------------------------------------------


@pytest.mark.parametrize("seat", [0, 1])
def test_kv_on_a_lost_instance_ends_its_request(pool: FakePool, seat: int) -> None:
    request = between_chunks(pool, WIDE)
    pool.lose(seat)
    assert_lost(pool, request)
    assert_ends_with_confirmation(pool, request, seat)


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("seat", [0, 1])
def test_a_running_chunk_on_a_lost_instance_ends_its_request(
    pool: FakePool, seat: int, chunk: int
) -> None:
    request = in_chunk(pool, WIDE, chunk)
    pool.lose(seat)
    assert_lost(pool, request)
    assert_ends_with_confirmation(pool, request, seat)


def test_survivors_leave_the_chunk_at_once(pool: FakePool) -> None:
    in_chunk(pool, WIDE, 0)
    pool.lose(1)
    pool.happen("0 takes an order")
    assert pool.instances[0].inside == []


def test_a_lane_is_given_on_only_when_its_lost_member_has_ended(pool: FakePool) -> None:
    request = in_chunk(pool, WIDE, 0)
    pool.lose(1)
    pool.settle()
    others = [with_pages(pool, [(50, [0, 2])], room=room) for room in range(20, 30)]
    pool.until(lambda: any(other.phase is Phase.RUNNING for other in others))
    taken = {other.lane for other in others if other.phase is Phase.RUNNING}
    assert request.lane not in taken
    pool.confirm(1)
    pool.settle()
    assert all(other.outcome == "finished" for other in others)


def test_a_one_instance_request_ends_with_its_instance(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [2])])
    pool.until(lambda: bool(pool.instances[2].stock_requests))
    pool.lose(2)
    assert_lost(pool, request)
    assert pool.lifecycle.busy_instances == frozenset(), "nobody waits for it to come on"
    assert_ends_with_confirmation(pool, request, 2)


def test_what_a_client_asks_of_a_lost_one_instance_request_is_no_order(pool: FakePool) -> None:
    """Its id is free, and the abort of a client or of decode goes to no process."""
    request = with_pages(pool, [(100, [2])])
    pool.lose(2)
    pool.lifecycle.abort(request, "no longer wanted")
    again = pool.submit(50, rid=request.rid, plan=[(50, [1])])
    assert not again.error
    pool.decode_aborts(ROOM, 0)
    assert pool.acks == {}
    pool.confirm(2)
    assert pool.acks == {(ROOM, 0): 1}
    pool.settle()
    assert again.outcome == "finished"


def test_an_abort_that_a_lost_instance_was_to_acknowledge_is_acknowledged(pool: FakePool) -> None:
    with_pages(pool, [(100, [2])])
    pool.until(lambda: bool(pool.instances[2].stock_requests))
    pool.decode_aborts(ROOM, 0)
    pool.lose(2)
    assert pool.acks == {}
    pool.confirm(2)
    assert pool.acks == {(ROOM, 0): 1}


def test_decodes_abort_waits_for_the_confirmed_end(pool: FakePool) -> None:
    in_chunk(pool, WIDE, 0)
    pool.lose(0)
    pool.decode_aborts(ROOM, 0)
    pool.settle()
    assert pool.acks == {}
    pool.confirm(0)
    pool.settle()
    assert pool.acks == {(ROOM, 0): 1}


@pytest.mark.parametrize("seat", [0, 1])
def test_writes_that_were_in_flight_end_their_request(pool: FakePool, seat: int) -> None:
    request = draining(pool, seat)
    pool.lose(seat)
    assert_lost(pool, request)
    assert_ends_with_confirmation(pool, request, seat)


def test_who_had_all_its_kv_with_decode_is_not_missed(pool: FakePool) -> None:
    request = draining(pool, 0)
    pool.lose(1)
    assert pool.lost_requests == []
    pool.settle()
    assert pool.told_finished == {ROOM: 1}
    assert pool.answers[request.tokenized] == ["home finished"]
    pool.confirm(1)
    pool.settle()
    assert request.outcome == "finished"
    assert empty(pool)


def test_home_is_missed_although_its_kv_is_with_decode(pool: FakePool) -> None:
    """It was to answer the client. Decode need not wait for it: nothing of it is in flight."""
    request = draining(pool, 1)
    pool.lose(0)
    assert_lost(pool, request)
    pool.settle()
    assert ROOM in pool.told_failed
    assert request.phase is Phase.RELEASING
    pool.confirm(0)
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    pool.fill(0)
    assert empty(pool)


@pytest.mark.parametrize("seat", [0, 1])
def test_an_instance_that_was_to_free_slots(pool: FakePool, seat: int) -> None:
    """Decode has the prompt's KV; only a client whose answer was still to come hears of it."""
    request = with_pages(pool, [(100, [0, 1])])
    pool.until(partial(phase_is, request, Phase.RELEASING))
    pool.lose(seat)
    pool.settle()
    assert request.phase is Phase.RELEASING
    pool.confirm(seat)
    pool.settle()
    assert pool.told_finished == {ROOM: 1}
    assert request.outcome == ("failed" if seat == 0 else "finished")
    assert pool.answers[request.tokenized][0] == ("controller" if seat == 0 else "home finished")
    assert empty(pool)


@pytest.mark.parametrize("home", [True, False])
def test_a_failed_request_is_answered_although_its_home_is_lost(pool: FakePool, home: bool) -> None:
    request = in_chunk(pool, WIDE, 0)
    pool.happen("1 fails in chunk 0")
    pool.until(partial(phase_is, request, Phase.DRAINING))
    assert pool.answers[request.tokenized] == []
    pool.lose(0 if home else 1)
    assert pool.answers[request.tokenized] == (["controller"] if home else [])
    pool.confirm(0 if home else 1)
    pool.settle()
    assert "chunk 0 broke" in request.error
    assert len(pool.answers[request.tokenized]) == 1
    assert empty(pool)


def test_an_aborted_request_ends_with_the_confirmed_end(pool: FakePool) -> None:
    request = in_chunk(pool, WIDE, 0)
    pool.lifecycle.abort(request, "no longer wanted")
    pool.lose(1)
    pool.settle()
    assert request.phase is Phase.DRAINING
    pool.confirm(1)
    pool.settle()
    assert (request.outcome, pool.answers[request.tokenized]) == ("aborted", ["controller"])
    assert empty(pool)


def test_all_instances_of_a_request_may_be_lost(pool: FakePool) -> None:
    request = in_chunk(pool, WIDE, 1)
    for seat in (0, 1, 2):
        pool.lose(seat)
    assert_lost(pool, request)
    for seat in (2, 0, 1):
        assert request.phase is not Phase.ENDED
        pool.confirm(seat)
    assert request.phase is Phase.ENDED
    for seat in (0, 1, 2):
        pool.fill(seat)
    assert empty(pool)


@pytest.mark.parametrize("steps", range(12))
def test_a_probe_fails_with_an_instance_that_it_needs(pool: FakePool, steps: int) -> None:
    chunks = (PlannedChunk(64, (0,), 0.0, 1.0), PlannedChunk(64, (0, 1), 1.0, 2.0))
    probe = PoolRequest("probe", None, 128, pool.now_s)
    pool.lifecycle.on_probe(probe, Plan(chunks, 2.0, "probe"))
    for _ in range(steps):
        next(move for move in pool.moves() if not move.fault).do()
    if probe.phase in (Phase.DRAINING, Phase.RELEASING):
        return
    pool.lose(1)
    pool.confirm(1)
    pool.settle()
    assert probe.phase is Phase.ENDED
    assert "instance 1" in probe.error
    assert not pool.answers[probe.tokenized]


# -- what was not yet there -------------------------------------------------------------------


@pytest.mark.parametrize("seat", [0, 1])
def test_a_plan_of_which_nothing_has_run_goes_elsewhere(seat: int) -> None:
    """And its client hears nothing of it."""
    pool = FakePool(policy="fixed-sp:2")
    request = pool.submit(1000, room=ROOM)
    pool.decode_sends(ROOM, 0)
    pool.turn()
    assert request.plan is not None
    assert request.plan.instances == (0, 1)
    pool.lose(seat)
    pool.settle()
    assert request.outcome == "finished"
    assert request.plan is not None
    assert set(request.plan.instances) == {2, 3}
    assert pool.answers[request.tokenized] == ["home finished"]
    assert pool.told_finished == {ROOM: 1}
    pool.confirm(seat)
    assert empty(pool)


def test_the_rest_of_a_plan_goes_elsewhere_when_its_running_chunk_has_ended(
    pool: FakePool,
) -> None:
    request = in_chunk(pool, WIDE, 0)
    pool.lose(2)
    pool.confirm(2)
    pool.fill(2)
    pool.settle()
    assert request.outcome == "finished"
    assert request.plan is not None
    assert 2 not in request.plan.instances
    assert pool.lost_requests == []
    assert empty(pool)


def test_the_rest_of_a_plan_that_fits_nowhere_else_ends_its_request() -> None:
    """At once where it is between two chunks, else when its running chunk has ended."""
    for runs in (True, False):
        pool = FakePool(size=2, capacity=64)
        request = in_chunk(pool, SMALL, 0) if runs else between_chunks(pool, SMALL)
        pool.lose(1)
        assert bool(pool.answers[request.tokenized]) is not runs
        pool.settle()
        assert_lost_elsewhere(pool, request)
        pool.confirm(1)
        pool.fill(1)
        assert empty(pool)


def assert_lost_elsewhere(pool: FakePool, request: PoolRequest) -> None:
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    assert pool.answers[request.tokenized] == ["controller"]
    assert pool.statuses[request.tokenized] == UNAVAILABLE
    assert "instance 1" in request.error
    assert "send it again" in request.error or pool.lost_requests == [request]


def test_a_plan_that_fits_nowhere_else_is_recalled() -> None:
    pool = FakePool(policy="fixed-sp:4", capacity=256)
    request = pool.submit(900, room=ROOM)
    pool.decode_sends(ROOM, 0)
    pool.turn()
    assert phase_is(request, Phase.BOUND)
    pool.lose(3)
    pool.settle()
    assert (request.phase, request.recalls) == (Phase.WAITING, 1)
    pool.confirm(3)
    pool.fill(3)
    pool.settle()
    assert (request.outcome, pool.answers[request.tokenized]) == ("finished", ["home finished"])
    assert pool.told_finished == {ROOM: 1}
    assert empty(pool)


def test_a_recalled_plan_is_gone_before_the_next_one_begins(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.lose(1)
    assert (request.phase, request.recalled) == (Phase.DRAINING, True)
    assert pool.submit(50, rid=request.rid).error, "its id is in use"
    pool.settle()
    assert (request.phase, request.recalls, request.plan) == (Phase.WAITING, 1, None)
    assert pool.ledger.free_tokens() == (pool.capacity,) * 4
    assert [instance.used for instance in pool.instances if instance.me != 1] == [0, 0, 0]
    pool.confirm(1)
    pool.fill(1)
    pool.settle()
    assert (request.outcome, pool.answers[request.tokenized]) == ("finished", ["home finished"])
    assert empty(pool)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING, Phase.WAITING])
@pytest.mark.parametrize("who", ["client", "decode"])
def test_a_recalled_request_that_nobody_wants_ends(pool: FakePool, phase: Phase, who: str) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.lose(1)
    for _ in range(100):
        if request.phase is phase:
            break
        next(move for move in pool.moves() if not move.fault).do()
    assert request.phase is phase
    if who == "client":
        pool.lifecycle.abort(request, "no longer wanted")
    else:
        pool.decode_aborts(ROOM, 0)
    assert pool.answers[request.tokenized] == ["controller"]
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "aborted")
    assert pool.acks == ({} if who == "client" else {(ROOM, 0): 1})
    assert pool.answers[request.tokenized] == ["controller"]
    pool.confirm(1)
    assert empty(pool)


def test_a_request_that_its_home_refuses_is_not_planned_again(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.happen("0 takes an order")
    pool.lose(1)
    pool.happen("0 refuses a request")
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    assert pool.answers[request.tokenized] == ["home refused"]
    assert ROOM in pool.told_failed


def test_what_a_recalled_plan_runs_into_means_nothing(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: any("0 cannot prepare" in move.name for move in pool.moves()))
    pool.lose(1)
    pool.happen("0 cannot prepare")
    pool.confirm(1)
    pool.fill(1)
    pool.settle()
    assert (request.outcome, request.recalls) == ("finished", 1)


def test_a_plan_is_recalled_as_often_as_need_be(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    for seat in (1, 0):
        pool.lose(seat)
    for seat in (1, 0):
        pool.confirm(seat)
        pool.fill(seat)
    pool.turn()
    assert phase_is(request, Phase.BOUND)
    pool.lose(0)
    pool.confirm(0)
    pool.fill(0)
    pool.settle()
    assert (request.outcome, request.recalls) == ("finished", 2)
    assert empty(pool)


# -- seats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.BOUND, Phase.RUNNING, Phase.DRAINING])
def test_what_a_lost_process_says_means_nothing(phase: Phase) -> None:
    for report in every_report(0, instance=1):
        pool = FakePool()
        request = with_pages(pool, [(100, [0, 1])])
        pool.until(partial(phase_is, request, phase))
        pool.lose(1)
        before = request.phase, set(request.drained), request.error
        pool.lifecycle.on_report(report)
        assert (request.phase, request.drained, request.error) == before


def test_a_seat_that_ends_without_having_been_lost_is_lost(pool: FakePool) -> None:
    request = in_chunk(pool, WIDE, 0)
    pool.confirm(1)
    assert "its process ended" in request.error
    pool.settle()
    assert request.outcome == "failed"


def test_a_draining_seat_ends_what_it_has_and_gets_nothing_new() -> None:
    pool = FakePool(policy="fixed-sp:2")
    first = pool.submit(1000)
    pool.turn()
    assert first.plan is not None
    assert first.plan.instances == (0, 1)
    pool.lifecycle.on_seat_draining(1)
    assert not pool.lifecycle.seat_idle(1)
    others = [pool.submit(1000) for _ in range(3)]
    pool.settle()
    assert first.outcome == "finished"
    assert {o.plan.instances for o in others if o.plan} == {(2, 3)}
    assert pool.lifecycle.seat_idle(1)
    pool.confirm(1)
    assert pool.lost_requests == []
    pool.fill(1)
    assert pool.lifecycle.presence.all_up


def test_a_seat_that_drains_may_stay(pool: FakePool) -> None:
    pool.lifecycle.on_seat_draining(1)
    request = with_pages(pool, TWO_CHUNKS)
    assert request.error, "nobody brings it back"
    pool.lifecycle.on_seat_up(1)
    assert pool.lifecycle.presence.stand(1) is Stand.UP
    request = with_pages(pool, TWO_CHUNKS, room=8)
    pool.settle()
    assert request.outcome == "finished"
