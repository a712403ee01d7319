"""What decode is told about bootstrap rooms, and when."""

from __future__ import annotations

from functools import partial

import pytest

from sglang_cdsp.controller.decode.room_manager import (
    ANNOUNCED_AFTER_S,
    SHARED_FOR_S,
    SHARED_ROOM_PAUSE_S,
    UNCERTAIN_FOR_S,
)
from sglang_cdsp.controller.decode.servers import FIRST_CONTACT_S, DecodeRank
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.protocol.messages import WriteLost
from tests.controller.cases import ROOM, TWO_CHUNKS, empty, phase_is, with_pages
from tests.controller.fake_pool import RESERVED, TIMEOUT_S, FakePool
from tests.controller.fake_tasks import Client, Sampling


@pytest.mark.parametrize("pages_first", [True, False])
def test_decode_hears_of_a_refusal_whenever_its_pages_come(
    pool: FakePool, pages_first: bool
) -> None:
    if pages_first:
        pool.decode_sends(ROOM, 0)
    pool.submit(0, room=ROOM)
    if not pages_first:
        pool.decode_sends(ROOM, 0)
    assert pool.told_failed == {ROOM}
    assert pool.rooms.messages(ROOM) == []
    assert pool.told_statuses == [400]


def test_decode_hears_that_a_queue_was_full() -> None:
    pool = FakePool(limits=QueueLimits(most=1))
    pool.submit(100, room=ROOM)
    pool.decode_sends(ROOM + 1, 0)
    pool.submit(100, room=ROOM + 1)
    assert pool.told_failed == {ROOM + 1}
    assert pool.told_statuses == [503]


def test_decode_hears_of_an_abort_what_its_own_client_is_told(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.lifecycle.abort(request, "no longer wanted")
    pool.settle()
    assert pool.told_failed == {ROOM}
    assert pool.told_statuses == [pool.statuses[request.tokenized]] == [503]


def test_a_rooms_number_can_be_used_again_after_a_refusal(pool: FakePool) -> None:
    pool.submit(0, room=ROOM)
    request = with_pages(pool, TWO_CHUNKS)
    pool.settle()
    assert request.outcome == "finished"
    assert pool.told_failed == set()


@pytest.mark.parametrize("known", [True, False])
def test_two_requests_in_one_room_both_fail(pool: FakePool, known: bool) -> None:
    first = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    if known:
        pool.decode_sends(ROOM, 0)
        pool.lifecycle.on_loop()
    second = pool.submit(100, room=ROOM)
    pool.settle()
    assert "new room number" in first.error
    assert "new room number" in second.error
    assert pool.answers[first.tokenized] == pool.answers[second.tokenized] == ["controller"]
    assert empty(pool)


@pytest.mark.parametrize("phase", [Phase.BOUND, Phase.DRAINING, Phase.RELEASING])
def test_a_room_used_again_early_can_be_used_again_later(pool: FakePool, phase: Phase) -> None:
    """Decode may be done with a room before the pool is; and its client may misuse a room."""
    first = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, first, phase))
    pool.decode_sends(ROOM, 0)
    second = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    pool.settle()
    expected = "finished" if phase is Phase.RELEASING else "failed"
    assert second.outcome == expected
    assert pool.rooms.messages(ROOM) == [], "nothing that a third request could take for its pages"
    pool.now_s += SHARED_FOR_S
    pool.settle()
    third = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    pool.settle()
    assert phase_is(third, Phase.ARRIVED)
    pool.decode_sends(ROOM, 0)
    pool.settle()
    assert third.outcome == "finished"
    assert empty(pool)


def test_decode_requests_that_share_a_room_before_prefill_knows_it(pool: FakePool) -> None:
    """Whose pages are whose cannot be told: both prefill requests are refused."""
    pool.decode_sends(ROOM, 0)
    pool.decode_sends(ROOM, 0)
    requests = [pool.submit(100, room=ROOM, plan=TWO_CHUNKS) for _ in range(2)]
    pool.settle()
    assert all("new room number" in request.error for request in requests)
    assert pool.told_failed == {ROOM}
    assert pool.rooms.messages(ROOM) == []
    pool.now_s += SHARED_FOR_S
    pool.settle()
    again = with_pages(pool, TWO_CHUNKS)
    pool.settle()
    assert again.outcome == "finished"


def told_a_pause_after_the_last_pages(pool: FakePool) -> None:
    """Decode names pages of the room once more, and hears of its failure some time after that."""
    pool.lifecycle.on_loop()
    pool.now_s += 0.9 * SHARED_ROOM_PAUSE_S
    pool.decode_sends(ROOM, 0)
    pool.lifecycle.on_loop()
    pool.now_s += 0.9 * SHARED_ROOM_PAUSE_S
    pool.lifecycle.on_loop()
    assert pool.told_failed == set()
    pool.now_s += 0.2 * SHARED_ROOM_PAUSE_S
    pool.lifecycle.on_loop()
    assert pool.told_failed == {ROOM}


def test_decode_hears_of_a_shared_room_once_both_of_its_requests_are_there(pool: FakePool) -> None:
    """Decode keeps its state by room: a word that only one request hears loses the other."""
    for request in [pool.submit(100, room=ROOM) for _ in range(2)]:
        assert "new room number" in request.error
    pool.settle()
    pool.decode_sends(ROOM, 0)
    told_a_pause_after_the_last_pages(pool)


def test_samples_of_a_refused_prompt_hear_of_it_together(pool: FakePool) -> None:
    """SGLang fails a prompt's own request, gives its room up, and sends its samples there."""
    pool.lifecycle.on_request(
        PoolRequest("n", Client(9, Sampling(n=2)), 100, pool.now_s, room=ROOM), None
    )
    pool.decode_sends(ROOM, 0)
    assert pool.told_failed == {ROOM}
    pool.told_failed.clear()
    pool.decode_sends(ROOM, 0)
    pool.decode_aborts(ROOM, 0)
    told_a_pause_after_the_last_pages(pool)


def test_an_abort_is_acknowledged_some_time_after_the_word_that_ends_others(pool: FakePool) -> None:
    """Both at once, and decode forgets the room before its samples have looked at it."""
    samples = PoolRequest("n", Client(9, Sampling(n=2)), 100, pool.now_s, room=ROOM)
    pool.lifecycle.on_request(samples, None)
    pool.decode_sends(ROOM, 0)
    pool.decode_aborts(ROOM, 0)
    # A busy decode server: its samples name their pages when the acknowledgement is almost due.
    pool.now_s += 1.9 * SHARED_ROOM_PAUSE_S
    pool.told_failed.clear()
    pool.decode_sends(ROOM, 0)
    pool.decode_sends(ROOM, 0)
    told_s = None
    for _ in range(100):
        pool.lifecycle.on_loop()
        if pool.told_failed and told_s is None:
            told_s = pool.now_s
        if pool.acks:
            break
        pool.now_s += 0.1 * SHARED_ROOM_PAUSE_S
    assert told_s is not None
    assert pool.now_s - told_s >= 0.9 * SHARED_ROOM_PAUSE_S
    assert pool.acks == {(ROOM, 0): 1}


def test_a_request_that_decode_never_asks_for_ends(pool: FakePool) -> None:
    waits = pool.submit(100, room=ROOM)
    other = with_pages(pool, TWO_CHUNKS, room=ROOM + 1)
    pool.now_s += 0.9 * TIMEOUT_S
    pool.settle()
    assert (phase_is(waits, Phase.ARRIVED), other.outcome) == (True, "finished")
    pool.now_s += 0.2 * TIMEOUT_S
    pool.settle()
    assert "send the request to a decode server too" in waits.error
    assert waits.outcome == "failed"
    pool.decode_sends(ROOM, 0)
    assert pool.told_failed == {ROOM}, "a decode server that comes later hears it"
    assert empty(pool)


def test_decode_leaves_a_room_that_it_shared(pool: FakePool) -> None:
    pool.decode_sends(ROOM, 0)
    pool.decode_sends(ROOM, 0)
    pool.decode_aborts(ROOM, 0)
    late = pool.submit(100, room=ROOM)
    assert "new room number" in late.error
    pool.settle()
    pool.now_s += SHARED_FOR_S
    pool.settle()
    again = with_pages(pool, TWO_CHUNKS)
    pool.settle()
    assert again.outcome == "finished"


# -- decode names no pages ------------------------------------------------------------------


@pytest.fixture
def contacted() -> FakePool:
    """A pool that a decode server has made contact with; it holds 2,000 tokens."""
    pool = FakePool(size=4, policy="threshold:1000", decode_tokens=None)
    make_contact(pool, 2000)
    return pool


def make_contact(pool: FakePool, tokens: int) -> None:
    """A decode server registers."""
    pool.lifecycle.on_decode_registered(DecodeRank(0, "decode", 7000, tokens + 1))


def wait(pool: FakePool, seconds: float) -> None:
    """Time passes, as the controller's loop sees it."""
    pool.now_s += seconds
    pool.lifecycle.on_loop()


@pytest.mark.parametrize("how", ["refused", "aborted", "two requests"])
def test_every_decode_server_hears_of_a_failed_room_that_none_has_named(
    contacted: FakePool, how: str
) -> None:
    """Decode's cache is full: its request waits there, and should not wait in vain."""
    pool = contacted
    request = pool.submit(0 if how == "refused" else 100, room=ROOM)
    if how == "aborted":
        pool.lifecycle.abort(request, "gone")
    if how == "two requests":
        pool.submit(100, room=ROOM)
    for _ in range(10):
        wait(pool, 0.5)
    assert pool.announced == {ROOM: len(ANNOUNCED_AFTER_S)}
    wait(pool, 100.0)
    assert pool.announced == {ROOM: len(ANNOUNCED_AFTER_S)}
    assert empty(pool)


@pytest.mark.parametrize("then", ["pages", "abort", "next request"])
def test_a_failed_room_is_announced_until_decode_is_heard_of(
    contacted: FakePool, then: str
) -> None:
    pool = contacted
    pool.submit(0, room=ROOM)
    wait(pool, ANNOUNCED_AFTER_S[0])
    if then == "pages":
        pool.decode_sends(ROOM, 0)
    elif then == "abort":
        pool.decode_aborts(ROOM, 0)
    else:
        pool.submit(100, room=ROOM)
    wait(pool, 100.0)
    assert pool.announced == {ROOM: 1}


def test_a_request_that_decode_itself_gave_up_is_not_announced(contacted: FakePool) -> None:
    contacted.submit(100, room=ROOM)
    contacted.decode_aborts(ROOM, 0)
    wait(contacted, 100.0)
    assert contacted.announced == {}


def test_a_prompt_that_decode_cannot_hold_is_refused_at_once(contacted: FakePool) -> None:
    longest = 2000 - RESERVED
    fits = contacted.submit(longest, room=ROOM)
    over = contacted.submit(longest + 1, room=ROOM + 1)
    without_decode = contacted.submit(longest + 1)
    assert "--max-total-tokens" in over.error
    assert (fits.outcome, over.outcome) == ("finished", "failed")
    contacted.decode_sends(ROOM, 0)
    contacted.settle()
    assert (fits.phase, fits.outcome) == (Phase.ENDED, "finished")
    assert (without_decode.phase, without_decode.outcome) == (Phase.ENDED, "finished")


def test_the_first_contact_decides_on_those_who_wait_for_it() -> None:
    pool = FakePool(size=4, policy="threshold:1000", decode_tokens=None)
    over, fits = pool.submit(3000, room=ROOM), pool.submit(100, room=ROOM + 1)
    wait(pool, 0.9 * FIRST_CONTACT_S)
    make_contact(pool, 2000)
    assert "decode takes at most" in over.error
    wait(pool, FIRST_CONTACT_S)
    assert phase_is(fits, Phase.ARRIVED), "decode has its usual time to name pages"


def test_without_any_contact_no_long_prompt_waits_long() -> None:
    pool = FakePool(size=4, policy="threshold:1000", decode_tokens=None)
    request, short = pool.submit(2000, room=ROOM), pool.submit(100, room=ROOM + 1)
    wait(pool, 0.9 * FIRST_CONTACT_S)
    assert phase_is(request, Phase.ARRIVED)
    wait(pool, 0.2 * FIRST_CONTACT_S)
    assert phase_is(short, Phase.ARRIVED), "every decode server holds such a prompt"
    pool.lifecycle.abort(short, "enough")
    assert "none has ever made contact" in request.error
    assert pool.answers[request.tokenized] == ["controller"]
    assert empty(pool)


def lost_for_good(pool: FakePool) -> PoolRequest:
    """A request one of whose writes failed in an unknown state."""
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.BOUND))
    report = WriteLost(
        instance=0, tp_rank=0, at_s=1.0, seq=request.seq, error="lost", uncertain=True
    )
    pool.hear(report)
    pool.settle()
    assert request.outcome == "failed"
    assert pool.told_failed == {ROOM}
    return request


def test_an_acknowledgement_waits_while_something_may_still_arrive(pool: FakePool) -> None:
    """Decode heard of the failure, gives the room up, and keeps its pages until the word comes."""
    lost_for_good(pool)
    pool.decode_aborts(ROOM, 0)
    pool.now_s += 3 * SHARED_ROOM_PAUSE_S
    pool.lifecycle.on_loop()
    assert pool.acks == {}
    pool.now_s += UNCERTAIN_FOR_S
    for _ in range(3):
        pool.lifecycle.on_loop()
    assert pool.acks == {(ROOM, 0): 1}


def test_a_room_that_is_used_again_gets_no_word_about_its_former_pages(pool: FakePool) -> None:
    """It would pass for an acknowledgement of the new request's own abort."""
    lost_for_good(pool)
    pool.decode_aborts(ROOM, 0)
    assert pool.acks == {}
    pool.now_s += SHARED_FOR_S / 2
    again = pool.submit(100, room=ROOM, plan=TWO_CHUNKS)
    pool.decode_sends(ROOM, 0)
    pool.settle()
    pool.now_s += UNCERTAIN_FOR_S
    pool.settle()
    assert pool.acks == {}
    assert again.error == "" or "new room number" in again.error


def test_a_certain_failure_is_acknowledged_at_once(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.BOUND))
    pool.hear(WriteLost(instance=0, tp_rank=0, at_s=1.0, seq=request.seq, error="lost"))
    pool.settle()
    pool.now_s += 2 * SHARED_ROOM_PAUSE_S
    pool.decode_aborts(ROOM, 0)
    pool.now_s += 2 * SHARED_ROOM_PAUSE_S
    pool.lifecycle.on_loop()
    assert pool.acks == {(ROOM, 0): 1}
