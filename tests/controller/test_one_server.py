"""One server: prompts come home in their last chunk, and are decoded there."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.controller.homes import OUTPUT_SHARE, exchanged, home_tokens, output_tokens
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.protocol.messages import SlotsTaken
from tests.controller.any_order import SETTINGS, AnyOrder
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.fake_pool import Demanded
from tests.controller.one_server import OneServerPool


class AnyOrderOfOneServer(AnyOrder):
    """As with decode servers, but every request is decoded at its home."""

    make_pool = OneServerPool
    # An abort may cross with the last chunk's end: home then ends what decodes already.
    own_answers = ("stock", "home")

    def _submit(self, request: PoolRequest, plan: Demanded | None, pages: str) -> None:
        super()._submit(request, plan, "no decode")


AnyOrderOfOneServer.TestCase.settings = SETTINGS
TestAnyOrderOfOneServer = AnyOrderOfOneServer.TestCase


@pytest.fixture
def pool() -> OneServerPool:
    return OneServerPool(size=4, policy="threshold:1000")


def test_a_request_waits_for_no_decode_server(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    assert phase_is(request, Phase.WAITING)
    pool.turn()
    assert phase_is(request, Phase.BOUND)


def test_home_alone_keeps_its_slots_while_it_decodes(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    need = home_tokens(request, 1)
    assert need > 100
    assert pool.ledger.free_tokens() == (pool.capacity - need, *(pool.capacity,) * 3)
    assert pool.answers[request.tokenized] == []
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_an_abort_is_answered_by_the_home_that_decodes(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home failed"]
    assert request.outcome == "aborted"
    assert empty(pool)


def test_an_abort_before_the_last_chunk_is_answered_at_once(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.RUNNING))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    assert pool.answers[request.tokenized] == ["controller"]
    pool.settle()
    assert empty(pool)


def test_a_short_prompt_is_its_instances_own_to_the_end(pool: OneServerPool) -> None:
    request = pool.submit(50)
    pool.until(lambda: request.first_token_s is not None)
    assert request.phase is Phase.STOCK
    assert sum(pool.ledger.free_tokens()) == 4 * pool.capacity - home_tokens(request, 1)
    pool.settle()
    assert empty(pool)


def test_what_instances_tell_counts_where_it_is_more_than_was_promised(
    pool: OneServerPool,
) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    promised = pool.capacity - pool.ledger.free_tokens()[0]
    for tokens, taken in ((promised - 10, promised), (promised + 500, promised + 500)):
        pool.hear(SlotsTaken(instance=0, tp_rank=0, at_s=0.0, tokens=tokens))
        assert pool.ledger.free_tokens()[0] == pool.capacity - taken


def test_a_prompt_that_no_instance_can_hold_is_refused(pool: OneServerPool) -> None:
    request = pool.submit(pool.capacity + 1)
    assert pool.answers[request.tokenized] == ["controller"]
    assert "instance that decodes it holds at most" in request.error


def test_home_is_a_member_with_room() -> None:
    """Every instance has room for a share of the prompt, one for all of it."""
    pool = OneServerPool(size=3, capacity=1000, policy="fixed-sp:3")
    before = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in (0, 2)]
    for request in before:
        pool.until(partial(phase_is, request, Phase.DECODING))
    third = pool.submit(600)
    pool.turn()
    assert third.plan is not None
    assert third.plan.home == 1
    assert set(third.plan.instances) == {0, 1, 2}
    pool.settle()
    assert empty(pool)


def test_an_instance_with_room_takes_a_members_place() -> None:
    """The idle instances have room for shares only; a busy one could hold all of it."""
    pool = OneServerPool(size=3, capacity=1000, policy="fixed-sp:2")
    decoding = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in (0, 1)]
    for request in decoding:
        pool.until(partial(phase_is, request, Phase.DECODING))
    busy = pool.submit(100, plan=[(100, [2])])
    pool.turn()
    third = pool.submit(600)
    pool.turn()
    assert busy.phase is Phase.STOCK
    assert third.plan is not None
    assert third.plan.home == 2
    assert len(third.plan.instances) == 2
    pool.settle()
    assert empty(pool)


# -- instances that are lost ------------------------------------------------------------------


def assert_lost(pool: OneServerPool, request: PoolRequest, seat: int) -> None:
    """Its client has its error, which names what was lost."""
    assert pool.answers[request.tokenized] == ["controller"]
    assert pool.statuses[request.tokenized] == HTTPStatus.SERVICE_UNAVAILABLE
    assert f"instance {seat} was lost" in request.error
    assert pool.lost_requests == [request]


def assert_ends_with_confirmation(pool: OneServerPool, request: PoolRequest, seat: int) -> None:
    """What it holds counts until the end of the lost process is confirmed."""
    phase = request.phase
    assert phase is not Phase.ENDED
    pool.confirm(seat)
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    pool.fill(seat)
    assert empty(pool)


def test_what_decodes_on_a_lost_instance_ends(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lose(0)
    assert_lost(pool, request, 0)
    assert pool.lifecycle.busy_instances == frozenset(), "nobody waits for it to come on"
    assert not pool.lifecycle.needs_start
    assert_ends_with_confirmation(pool, request, 0)


def test_so_does_a_short_prompt_after_its_first_token(pool: OneServerPool) -> None:
    request = pool.submit(50, plan=[(50, [2])])
    pool.until(lambda: request.first_token_s is not None)
    pool.lose(2)
    assert_lost(pool, request, 2)
    assert_ends_with_confirmation(pool, request, 2)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING])
def test_so_does_what_others_still_hold_slots_of(pool: OneServerPool, phase: Phase) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, phase))
    pool.lose(0)
    assert_lost(pool, request, 0)
    assert_ends_with_confirmation(pool, request, 0)


def test_so_does_what_its_home_alone_has(pool: OneServerPool) -> None:
    """Home has told that it decodes; the other member has yet to free its slots."""
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.RELEASING))
    pool.until(lambda: request.joined)
    assert phase_is(request, Phase.RELEASING)
    pool.lose(0)
    assert_lost(pool, request, 0)
    pool.happen("1 takes an order")
    pool.until(lambda: request.phase is not Phase.RELEASING)
    assert phase_is(request, Phase.DECODING)
    assert_ends_with_confirmation(pool, request, 0)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING, Phase.DECODING])
def test_a_member_is_not_missed_once_home_has_all_kv(pool: OneServerPool, phase: Phase) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, phase))
    pool.lose(1)
    assert pool.lost_requests == []
    pool.confirm(1)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert request.outcome == "finished"
    pool.fill(1)
    assert empty(pool)


def in_the_last_chunk(pool: OneServerPool, *, home_is_done: bool) -> PoolRequest:
    """A request whose last chunk runs at both of its instances, or at the other one only."""
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: request.next_chunk == 1 and request.phase is Phase.RUNNING)
    if home_is_done:
        for name in ("0 takes an order", "1 takes an order", "0 ends chunk 1 of 0"):
            pool.happen(name)
        pool.until(lambda: bool(request.times[1].done))
        assert request.times[1].done == {0}
    return request


def test_a_member_inside_the_last_chunk_is_missed(pool: OneServerPool) -> None:
    request = in_the_last_chunk(pool, home_is_done=False)
    pool.lose(1)
    assert_lost(pool, request, 1)
    pool.confirm(1)
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    pool.fill(1)
    assert empty(pool)


def test_a_member_inside_the_last_chunk_is_not_missed_once_home_is_done(
    pool: OneServerPool,
) -> None:
    request = in_the_last_chunk(pool, home_is_done=True)
    pool.lose(1)
    assert pool.lost_requests == []
    pool.confirm(1)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert request.outcome == "finished"
    pool.fill(1)
    assert empty(pool)


def test_so_is_what_fails_at_another_member(pool: OneServerPool) -> None:
    request = in_the_last_chunk(pool, home_is_done=True)
    pool.happen("1 fails in chunk 1 of 0")
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert (request.outcome, request.error) == ("finished", "")
    assert empty(pool)


def test_an_abort_after_that_ends_it_at_home(pool: OneServerPool) -> None:
    request = in_the_last_chunk(pool, home_is_done=True)
    pool.happen("1 fails in chunk 1 of 0")
    pool.until(lambda: phase_is(request, Phase.DRAINING))
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home failed"]
    assert request.outcome == "aborted"
    assert empty(pool)


def test_an_aborted_request_is_answered_although_its_home_is_lost(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: request.joined)
    pool.lifecycle.on_abort(request.rid, "no longer wanted", everything=False)
    assert pool.answers[request.tokenized] == []
    pool.lose(0)
    assert pool.answers[request.tokenized] == ["controller"]
    pool.confirm(0)
    pool.settle()
    assert request.outcome == "aborted"
    pool.fill(0)
    assert empty(pool)


def test_an_aborted_plan_that_was_recalled_is_answered_at_once(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.turn()
    pool.lose(1)
    assert (request.phase, request.recalled) == (Phase.DRAINING, True)
    pool.lifecycle.abort(request, "no longer wanted")
    assert pool.answers[request.tokenized] == ["controller"]
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "aborted")


def test_the_id_of_what_was_lost_is_free_at_once(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lose(0)
    again = pool.submit(50, rid=request.rid, plan=[(50, [1])])
    assert not again.error
    pool.confirm(0)
    pool.settle()
    assert [request.outcome, again.outcome] == ["failed", "finished"]


def test_a_seat_that_drains_is_idle_when_nothing_decodes_there(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    for seat in (0, 1):
        pool.lifecycle.on_seat_draining(seat)
    assert not pool.lifecycle.seat_idle(0)
    assert pool.lifecycle.seat_idle(1)
    pool.settle()
    assert pool.lifecycle.seat_idle(0)


def test_what_a_lost_instance_told_of_its_slots_is_forgotten(pool: OneServerPool) -> None:
    pool.hear(SlotsTaken(instance=0, tp_rank=0, at_s=0.0, tokens=500))
    assert pool.ledger.free_tokens()[0] == pool.capacity - 500
    pool.lose(0)
    pool.confirm(0)
    pool.fill(0)
    assert empty(pool)


def test_a_plan_that_goes_elsewhere_gets_a_home_with_room() -> None:
    """Of the instances that are left all have room for a share, the first not for all of it."""
    pool = OneServerPool(size=4, capacity=1000, policy="fixed-sp:4")
    decoding = pool.submit(500, plan=[(250, [1])] * 2)
    pool.until(lambda: phase_is(decoding, Phase.DECODING))
    request = pool.submit(800)
    pool.turn()
    assert request.plan is not None
    assert request.plan.home == 0
    pool.lose(0)
    assert phase_is(request, Phase.BOUND)
    assert request.plan.instances == (2, 1, 3)
    pool.confirm(0)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert pool.lost_requests == []
    pool.fill(0)
    assert empty(pool)


def test_a_plan_without_a_home_that_names_a_lost_instance_is_made_again() -> None:
    pool = OneServerPool(size=4, capacity=1000, policy="fixed-sp:2")
    running = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in range(4)]
    for request in running:
        pool.until(partial(phase_is, request, Phase.DECODING))
    waiting = [pool.submit(700), pool.submit(680)]
    pool.turn()
    pool.lose(0)
    pool.confirm(0)
    pool.settle()
    assert [request.outcome for request in running] == ["failed", *["finished"] * 3]
    assert [request.outcome for request in waiting] == ["finished"] * 2
    assert waiting[0].seq < waiting[1].seq
    for request in waiting:
        assert request.plan is not None
        assert 0 not in request.plan.instances
    pool.fill(0)
    assert empty(pool)


def test_a_prompt_without_a_home_waits_and_keeps_its_place() -> None:
    pool = OneServerPool(size=2, capacity=1000, policy="fixed-sp:2")
    running = [pool.submit(500, plan=[(250, [instance])] * 2) for instance in (0, 1)]
    for request in running:
        pool.until(partial(phase_is, request, Phase.DECODING))
    long, short = pool.submit(700), pool.submit(30)
    pool.turn()
    assert long.phase is Phase.WAITING
    assert short.phase is Phase.WAITING
    pool.settle()
    assert [request.outcome for request in (long, short)] == ["finished"] * 2
    assert long.seq < short.seq
    assert empty(pool)


@settings(deadline=None)
@given(st.integers(1, 5000), st.none() | st.integers(0, 9000), st.sampled_from([1, 16, 64]))
def test_what_is_promised_for_output_fits(tokens: int, longest: int | None, page: int) -> None:
    room = 4096
    promised = output_tokens(tokens, longest, page, room)
    assert promised % page == 0
    assert 0 <= promised <= max(0, room - tokens)
    if longest is not None and tokens + longest + 2 * page <= room:
        assert promised >= OUTPUT_SHARE * longest


def test_instances_change_places_in_every_chunk() -> None:
    assert exchanged(((8, (0,)), (4, (0, 1, 2))), 0, 2) == ((8, (2,)), (4, (2, 1, 0)))
