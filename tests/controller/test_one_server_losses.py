"""Instances of one server that are lost: requests go on from what their clients have."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import pytest

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.resuming import MOST_LOSSES
from sglang_cdsp.protocol.messages import SlotsTaken
from tests.controller.cases import TWO_CHUNKS, empty, phase_is
from tests.controller.fake_tasks import Client
from tests.controller.going_on import assert_goes_on, assert_lost_and_goes_on, stream
from tests.controller.one_server import OneServerPool


@pytest.fixture
def pool() -> OneServerPool:
    return OneServerPool(size=4, policy="threshold:1000")


def test_what_decodes_on_a_lost_instance_goes_on_from_what_its_client_has(
    pool: OneServerPool,
) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    stream(pool, 0, request.seq, 4)
    pool.happen(f"0 generates a token of {request.seq}")  # which nobody ever sees
    seq = request.seq
    pool.lose(0)
    assert pool.lifecycle.busy_instances == frozenset(), "nobody waits for it to come on"
    assert not pool.lifecycle.needs_start
    pool.turn()
    assert phase_is(request, Phase.DECODING), "its process may still write"
    assert_goes_on(pool, request, 0)
    assert request.seq > seq
    assert request.tokens == 105
    assert request.resumes is not None
    assert request.resumes.tokens == [0, 1, 2, 3, 4]
    assert pool.seen[request.rid] == 7, "five, one that its new home sampled, and the last one"
    assert request.first_token_s is not None


def test_so_does_a_short_prompt_after_its_first_token(pool: OneServerPool) -> None:
    request = pool.submit(50, plan=[(50, [2])])
    pool.until(lambda: request.first_token_s is not None)
    stream(pool, 2, request.seq, 1)
    pool.lose(2)
    assert_goes_on(pool, request, 2)
    assert not request.one_instance, "SGLang's prefill would start its penalties anew"


def test_a_request_without_output_starts_anew(pool: OneServerPool) -> None:
    request = pool.submit(50)
    pool.until(lambda: request.first_token_s is not None)
    assert request.plan is not None
    assert_lost_and_goes_on(pool, request, request.plan.home)
    assert request.resumes is None
    assert request.one_instance


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING])
def test_so_does_what_others_still_hold_slots_of(phase: Phase) -> None:
    pool = OneServerPool(size=4, policy="fixed-sp:2")
    request = pool.submit(100)
    pool.until(lambda: phase_is(request, phase))
    assert request.plan is not None
    assert_lost_and_goes_on(pool, request, request.plan.home)


def test_so_does_what_its_home_alone_has() -> None:
    """Home has told that it decodes; the other member has yet to free its slots."""
    pool = OneServerPool(size=4, policy="fixed-sp:2")
    request = pool.submit(100)
    pool.until(lambda: phase_is(request, Phase.RELEASING))
    pool.until(lambda: request.joined)
    assert phase_is(request, Phase.RELEASING)
    assert request.plan is not None
    home, other = request.plan.instances
    pool.lose(home)
    pool.happen(f"{other} takes an order")
    assert_goes_on(pool, request, home)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.RELEASING, Phase.DECODING])
def test_a_member_is_not_missed_once_home_has_all_kv(pool: OneServerPool, phase: Phase) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, phase))
    pool.lose(1)
    assert pool.lost_requests == []
    pool.confirm(1)
    pool.settle()
    assert pool.answers[request.tokenized] == ["home finished"]
    assert (request.outcome, request.recalls) == ("finished", 0)
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
    pool.confirm(1)
    pool.fill(1)  # the plan that it brings names it
    pool.settle()
    assert (request.recalls, request.outcome) == (1, "finished")
    assert pool.answers[request.tokenized] == ["home finished"]
    assert empty(pool)


def test_home_lets_go_of_what_it_decodes_before_that_is_known(pool: OneServerPool) -> None:
    """The order to end the plan crosses the end of its last chunk and the first output."""
    request = in_the_last_chunk(pool, home_is_done=False)
    for name in ("0 takes an order", "1 takes an order", "0 ends chunk 1 of 0"):
        pool.happen(name)
    for name in ("0 generates a token of 0", "0 streams 0"):
        pool.happen(name)
    pool.lose(1)
    assert request.recalled
    assert_goes_on(pool, request, 1)
    assert request.resumes is not None
    assert request.resumes.tokens == [0, 1]


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


def test_a_client_that_has_its_whole_answer_misses_nothing(pool: OneServerPool) -> None:
    request = pool.submit(100, plan=TWO_CHUNKS)
    pool.until(lambda: phase_is(request, Phase.DECODING))
    pool.happen(f"0 decodes {request.seq} to its end")
    pool.happen("the controller hears 0.0")  # of the output, not yet that it has ended
    assert request.output.complete
    pool.instances[0].lost = True
    pool.lifecycle.on_seat_lost(0, "killed by a test")
    pool.lifecycle.on_abort(request.rid, "no longer wanted", everything=False)
    pool.confirm(0)
    pool.settle()
    assert (request.outcome, request.recalls) == ("finished", 0)
    assert pool.answers[request.tokenized] == ["home finished"]
    pool.fill(0)
    assert empty(pool)


@dataclass(frozen=True)
class Peculiar(Client):
    """A client whose request has state that its output does not tell."""

    custom_logit_processor: str = "counts in secret"


@pytest.mark.parametrize(("streamed", "outcome"), [(0, "finished"), (2, "failed")])
def test_state_that_cannot_be_rebuilt_ends_in_an_error(
    pool: OneServerPool, streamed: int, outcome: str
) -> None:
    request = pool.request(100)
    request.tokenized = Peculiar(99)
    pool.lifecycle.on_request(request, None)
    pool.until(lambda: request.first_token_s is not None)
    assert request.plan is not None
    home = request.plan.home
    if streamed:
        stream(pool, home, request.seq, streamed)
    pool.lose(home)
    if streamed:
        assert pool.answers[request.tokenized] == ["controller"]
        assert pool.statuses[request.tokenized] == HTTPStatus.SERVICE_UNAVAILABLE
        assert f"instance {home} was lost" in request.error
        assert "a custom logit processor" in request.error
    pool.confirm(home)
    pool.settle()
    assert request.outcome == outcome


def test_a_request_does_not_end_one_instance_after_the_other() -> None:
    pool = OneServerPool(size=2, policy="threshold:1000")
    request = pool.submit(100)
    for _ in range(MOST_LOSSES + 1):
        assert request.phase is not Phase.ENDED
        pool.until(lambda: request.phase is Phase.STOCK)
        assert request.plan is not None
        home = request.plan.home
        pool.lose(home)
        pool.confirm(home)
        pool.fill(home)
    assert pool.answers[request.tokenized] == ["controller"]
    assert "4th that was lost under it" in request.error
    pool.settle()
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


def test_what_a_lost_instance_told_of_its_slots_is_forgotten(pool: OneServerPool) -> None:
    pool.hear(SlotsTaken(instance=0, tp_rank=0, at_s=0.0, tokens=500))
    assert pool.ledger.free_tokens()[0] == pool.capacity - 500
    pool.lose(0)
    pool.confirm(0)
    pool.fill(0)
    assert empty(pool)
