"""Requests that somebody no longer wants: their client, or decode."""

from __future__ import annotations

from functools import partial

import pytest

from sglang_cdsp.controller.phases import Phase
from tests.controller.cases import ROOM, TWO_CHUNKS, empty, phase_is, with_pages
from tests.controller.fake_pool import FakePool

# -- aborts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.ARRIVED, Phase.WAITING, Phase.BOUND, Phase.DRAINING])
def test_an_abort_is_answered_at_once_and_slots_follow(pool: FakePool, phase: Phase) -> None:
    request = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    if phase is not Phase.ARRIVED:
        pool.decode_sends(ROOM, 0)
    if phase in (Phase.BOUND, Phase.DRAINING):
        pool.until(lambda: request.phase is phase)
    assert request.phase is phase
    pool.lifecycle.abort(request, "no longer wanted")
    assert pool.answers[request.tokenized] == ["controller"]
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "aborted")
    assert pool.answers[request.tokenized] == ["controller"]
    assert empty(pool)


def test_an_abort_inside_a_chunk_takes_effect_inside_it(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: bool(pool.instances[0].inside))
    pool.lifecycle.abort(request, "no longer wanted")
    assert phase_is(request, Phase.DRAINING)
    pool.happen("0 takes an order")
    assert pool.instances[0].inside == []
    pool.settle()
    assert pool.entered == {(0, 0): {0}}
    assert request.outcome == "aborted"


def test_an_abort_while_slots_are_freed_changes_nothing(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(lambda: request.phase is Phase.RELEASING)
    pool.lifecycle.abort(request, "too late")
    pool.settle()
    assert (request.outcome, pool.answers[request.tokenized]) == ("finished", ["home finished"])


def test_an_aborted_stock_request_that_was_held_back_never_runs(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [2])])
    pool.lifecycle.abort(request, "no longer wanted")
    pool.settle()
    assert (request.outcome, request.first_token_s) == ("aborted", None)
    assert pool.answers[request.tokenized] == ["controller"]
    assert empty(pool)


def test_aborts_name_requests_by_the_beginning_of_their_id(pool: FakePool) -> None:
    requests = [pool.submit(100, rid=rid) for rid in ("a_1", "a_2", "b_1")]
    pool.lifecycle.on_abort("a_", "gone", everything=False)
    assert [request.aborted for request in requests] == [True, True, False]
    pool.lifecycle.on_abort("none", "gone", everything=True)
    assert all(request.aborted for request in requests)


# -- decode gives up ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "phase", [Phase.ARRIVED, Phase.WAITING, Phase.BOUND, Phase.DRAINING, Phase.RELEASING]
)
def test_decodes_abort_is_acknowledged_once_in_every_phase(phase: Phase) -> None:
    """The fakes object to an acknowledgement while a rank may still write."""
    pool = FakePool(tp_size=2)
    request = with_pages(pool, TWO_CHUNKS, bound=False) if phase is not Phase.ARRIVED else None
    request = request or pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    if phase not in (Phase.ARRIVED, Phase.WAITING):
        pool.until(partial(phase_is, request, phase))
    pool.decode_aborts(ROOM, 1)
    pool.settle()
    pool.decode_aborts(ROOM, 0)
    pool.settle()
    assert pool.acks == {(ROOM, 0): 1, (ROOM, 1): 1}
    assert request.outcome == ("finished" if phase is Phase.RELEASING else "aborted")
    assert empty(pool)


def test_an_abort_waits_for_a_write_in_flight(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [0, 1])])
    pool.until(lambda: request.phase is Phase.DRAINING)
    while moves := [m for m in pool.moves() if not m.fault and "write of 0 at 1" not in m.name]:
        moves[0].do()
    pool.decode_aborts(ROOM, 0)
    assert pool.acks == {}
    pool.settle()
    assert pool.acks == {(ROOM, 0): 1}


def test_a_one_instance_requests_abort_is_its_senders_to_acknowledge(pool: FakePool) -> None:
    request = with_pages(pool, [(100, [2])])
    pool.until(lambda: bool(pool.instances[2].stock_requests))
    pool.decode_aborts(ROOM, 0)
    assert pool.acks == {}
    pool.settle()
    assert pool.acks == {(ROOM, 0): 1}
    assert request.outcome == "aborted"


def test_a_request_that_decode_left_before_it_arrived_never_writes(pool: FakePool) -> None:
    """Its pages were acknowledged as safe: they belong to others by now."""
    pool.decode_sends(ROOM, 0)
    pool.decode_aborts(ROOM, 0)
    assert pool.acks == {(ROOM, 0): 1}
    late = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    assert (late.phase, late.outcome) == (Phase.ENDED, "failed")
    assert "decode gave the request up" in late.error


def test_decodes_abort_of_an_ended_request_does_not_spoil_its_rooms_number(
    pool: FakePool,
) -> None:
    for _ in range(2):
        request = with_pages(pool, TWO_CHUNKS)
        pool.settle()
        assert request.outcome == "finished"
        pool.decode_aborts(ROOM, 0)
