"""One server: prompts come home in their last chunk, and are decoded there."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.controller.decode_shares import DecodeShares
from sglang_cdsp.controller.homes import (
    OUTPUT_SHARE,
    exchanged,
    home_tokens,
    output_tokens,
    tokens_left,
)
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.planner.decode_price import USUAL_SHARE
from sglang_cdsp.planner.types import Plan, PlannedChunk
from sglang_cdsp.protocol.messages import SlotsTaken
from tests.controller.any_order import SETTINGS
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.fake_pool import Demanded
from tests.controller.one_server import OneServerPool
from tests.controller.one_server_order import ENDS, AnyOrderOfOneServer

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


def test_a_chunks_share_is_decided_when_it_starts_and_left_out_of_what_is_learnt(
    pool: OneServerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One decodes there, and two prompts wait for chunks: a quarter of the usual share."""
    pool.ledger.decode = DecodeShares(None, None)
    learnt: list[float] = []
    monkeypatch.setattr(
        pool.planning.correction, "observe", lambda *parts: learnt.append(parts[-1])
    )
    chunks: Demanded = [(50, [0]), (50, [0])]
    before = pool.submit(100, plan=chunks)
    pool.until(lambda: phase_is(before, Phase.DECODING))
    assert before.times[0].decode_share == USUAL_SHARE
    first, second = pool.submit(100, plan=chunks), pool.submit(100, plan=chunks)
    learnt.clear()
    pool.until(lambda: len(learnt) == 1)
    assert phase_is(before, Phase.DECODING)
    assert phase_is(second, Phase.BOUND)
    share = first.times[0].decode_share
    assert share == pytest.approx(USUAL_SHARE / 4)
    assert learnt == [pytest.approx(1.0 - share)]


def test_what_waits_without_a_plan_counts_too(pool: OneServerPool) -> None:
    for _ in range(3):
        pool.submit(100, plan=TWO_CHUNKS)
    assert pool.ledger.unplanned() == 3
    pool.turn()
    assert pool.ledger.unplanned() == 0
    waits = pool.submit(100)
    assert pool.ledger.unplanned() == 1
    pool.lifecycle.on_abort(waits.rid, "aborted by the client", everything=False)
    assert pool.ledger.unplanned() == 0


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


def test_the_id_of_what_goes_on_is_its_own(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.lose(0)
    assert "is in use" in pool.submit(50, rid=request.rid).error
    pool.confirm(0)
    assert "is in use" in pool.submit(50, rid=request.rid).error
    pool.settle()
    assert request.outcome == "finished"


@pytest.mark.parametrize("plan", [TWO_CHUNKS, [(50, [0])]], ids=["chunks", "own queue"])
def test_an_id_is_free_when_its_client_has_the_whole_answer(
    pool: OneServerPool, plan: Demanded
) -> None:
    assert isinstance(plan, list)
    request = pool.submit(sum(tokens for tokens, _ in plan), plan=plan)
    pool.until(lambda: request.first_token_s is not None)
    pool.until(lambda: any(move.name.endswith(ENDS) for move in pool.moves()))
    second = pool.request(50, rid=request.rid)
    pool.lifecycle.on_request(second, None)
    assert "is in use" in second.error
    request.output.complete = request.answered = True  # which its home tells
    third = pool.request(50, rid=request.rid)
    pool.lifecycle.on_request(third, None)
    assert not third.error
    pool.settle()
    assert (request.outcome, third.outcome) == ("finished", "finished")
    assert empty(pool)


def test_a_seat_that_drains_is_idle_when_nothing_decodes_there(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    for seat in (0, 1):
        pool.lifecycle.on_seat_draining(seat)
    assert not pool.lifecycle.seat_idle(0)
    assert pool.lifecycle.seat_idle(1)
    pool.settle()
    assert pool.lifecycle.seat_idle(0)


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
    assert [request.outcome for request in running] == ["finished"] * 4
    assert [request.outcome for request in waiting] == ["finished"] * 2
    assert waiting[0].seq < waiting[1].seq
    for request in waiting:
        assert request.plan is not None
        assert 0 not in request.plan.instances
    pool.fill(0)
    pool.settle()  # the first brought a plan that names the lost instance, and waits for it
    assert running[0].recalls == 1
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


@pytest.mark.parametrize("busy", [0, 1])
def test_a_plan_that_has_waited_for_a_home_goes_where_it_is_free_by_then(busy: int) -> None:
    """It was made for one of two idle instances without room; that one has work when room comes."""
    pool = OneServerPool(size=2, capacity=1000, policy="cdsp-late")
    queue = WaitingQueue(pool.planning, pool.ledger, lambda: 0.0)
    for instance in (0, 1):
        plan = Plan((PlannedChunk(100, (instance,), 0.0, 0.0),), 0.0, "held")
        pool.ledger.bind(instance, plan, 0.0, {instance: 600})
        pool.ledger.computed(instance)
    request = pool.request(700)
    queue.add(request)
    assert list(queue.starts()) == []
    for instance in (0, 1):
        pool.ledger.release(instance)
    other = Plan((PlannedChunk(100, (busy,), 0.0, 9.0),), 9.0, "busy")
    pool.ledger.bind(2, other, 0.0, {busy: 100})
    ((found, chosen),) = queue.starts()
    assert found is request
    assert chosen.instances == (1 - busy,)
    assert chosen.chunks[0].start_s == 0.0
    assert not chosen.replanned


@settings(deadline=None)
@given(st.integers(1, 5000), st.none() | st.integers(0, 9000), st.sampled_from([1, 16, 64]))
def test_what_is_promised_for_output_fits(tokens: int, longest: int | None, page: int) -> None:
    room = 4096
    promised = output_tokens(tokens, longest, page, room)
    assert promised % page == 0
    assert 0 <= promised <= max(0, room - tokens)
    if longest is not None and tokens + longest + 2 * page <= room:
        assert promised >= OUTPUT_SHARE * longest


def test_what_is_to_come_of_an_output_is_at_most_what_it_may_have(pool: OneServerPool) -> None:
    request = pool.request(100)
    request.longest_output, request.output_tokens = 100, 64
    assert tokens_left(request) == 64
    request.output.tokens.extend(range(30))
    assert tokens_left(request) == 64, "where it ends is as unknown as before"
    request.output.tokens.extend(range(50))
    assert tokens_left(request) == 20
    request.output.tokens.extend(range(20))
    assert tokens_left(request) == 1
    request.longest_output = None
    assert tokens_left(request) == 64


def test_instances_change_places_in_every_chunk() -> None:
    assert exchanged(((8, (0,)), (4, (0, 1, 2))), 0, 2) == ((8, (2,)), (4, (2, 1, 0)))
