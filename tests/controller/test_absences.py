"""Prompts that fit only with absent instances: they wait for them, and not for ever."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from sglang_cdsp.args import DEFAULT_SEAT_TIMEOUT_S
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import TWO_CHUNKS
from tests.controller.fake_pool import FakePool

CAPACITY = 256
ALL_FOUR = 3 * CAPACITY + 32
"""Tokens that three instances do not hold together, and four do."""


def pool_of_four(policy: str = "single-chunk") -> FakePool:
    return FakePool(size=4, capacity=CAPACITY, policy=policy)


def down(pool: FakePool, *seats: int) -> None:
    """Seats whose processes have ended."""
    for seat in seats:
        pool.lose(seat)
        pool.confirm(seat)


def waits(pool: FakePool, request: PoolRequest, seconds: float) -> None:
    """Time passes in which a request goes on waiting."""
    end_s = pool.now_s + seconds
    while pool.now_s < end_s:
        pool.turn()
        pool.now_s = min(end_s, pool.now_s + 0.5)
    assert request.phase is Phase.WAITING


def assert_refused(pool: FakePool, request: PoolRequest, *words: str) -> None:
    assert (request.phase, request.outcome) == (Phase.ENDED, "failed")
    assert pool.statuses[request.tokenized] == int(HTTPStatus.SERVICE_UNAVAILABLE)
    for word in words:
        assert word in request.error


@pytest.mark.parametrize("policy", ["single-chunk", "cdsp", "cdsp-late", "fixed-sp:4"])
def test_a_prompt_waits_for_a_seat_that_comes_back(policy: str) -> None:
    pool = pool_of_four(policy)
    down(pool, 2)
    request = pool.submit(ALL_FOUR)
    waits(pool, request, DEFAULT_SEAT_TIMEOUT_S - 1)
    pool.fill(2)
    pool.settle()
    assert request.outcome == "finished"


def test_it_waits_no_longer_than_stated() -> None:
    pool = pool_of_four()
    request = pool.submit(ALL_FOUR)
    down(pool, 2)
    waits(pool, request, DEFAULT_SEAT_TIMEOUT_S)
    pool.turn()
    assert_refused(pool, request, "120 s", "--cdsp-seat-timeout", "instance 2")


def test_the_time_counts_from_when_a_seat_is_missing() -> None:
    """A seat that comes back in between starts it anew."""
    pool = pool_of_four()
    blocker = pool.submit(CAPACITY, plan=[(CAPACITY, [0])])
    pool.turn()
    assert blocker.plan is not None
    request = pool.submit(ALL_FOUR)
    pool.lose(2)
    waits(pool, request, 100)
    pool.confirm(2)
    pool.fill(2)
    waits(pool, request, 100)
    down(pool, 3)
    waits(pool, request, 100)
    pool.now_s += 21
    pool.turn()
    assert_refused(pool, request, "instance 3")


def test_others_do_not_wait_behind_it() -> None:
    for policy in ("single-chunk", "cdsp", "cdsp-late", "fixed-sp:2", "threshold:300"):
        pool = pool_of_four(policy)
        down(pool, 0)
        long = pool.submit(ALL_FOUR) if policy != "fixed-sp:2" else None
        demanding = pool.submit(100, plan=TWO_CHUNKS)
        short = pool.submit(100)
        demanding_little = pool.submit(100, plan=[(100, [3])])
        for _ in range(20):
            pool.turn()
            moves = [move for move in pool.moves() if not move.fault]
            if moves:
                moves[0].do()
        assert short.phase is not Phase.WAITING, policy
        assert demanding_little.phase is not Phase.WAITING
        assert demanding.phase is Phase.WAITING
        assert long is None or long.phase is Phase.WAITING


def test_a_seat_that_stays_down_is_not_waited_for() -> None:
    pool = pool_of_four()
    down(pool, 1)
    request = pool.submit(ALL_FOUR)
    pool.turn()
    assert request.phase is Phase.WAITING
    pool.lifecycle.on_seat_stays_down(1, "three deaths in ten minutes")
    pool.turn()
    assert_refused(
        pool, request, "instance 1", "three deaths in ten minutes", '{"seats": {"1": "start"}}'
    )
    late = pool.submit(ALL_FOUR)
    pool.turn()
    assert_refused(pool, late, "three deaths in ten minutes")
    pool.lifecycle.on_seat_stays_down(1, "")
    again = pool.submit(ALL_FOUR)
    pool.turn()
    assert again.phase is Phase.WAITING


def test_a_seat_that_drains_is_not_waited_for() -> None:
    pool = pool_of_four()
    request = pool.submit(ALL_FOUR, room=7)
    pool.lifecycle.on_seat_draining(3)
    pool.turn()
    assert_refused(pool, request, "instance 3", "asked to leave")
    assert pool.announced or 7 in pool.told_failed or pool.rooms.rejection(7)


def test_without_any_instance_every_prompt_waits_while_one_comes_back() -> None:
    pool = pool_of_four()
    down(pool, 0, 1, 2, 3)
    short, demanding = pool.submit(10), pool.submit(100, plan=TWO_CHUNKS)
    pool.turn()
    assert (short.phase, demanding.phase) == (Phase.WAITING, Phase.WAITING)
    for seat in (1, 2, 3):
        pool.lifecycle.on_seat_stays_down(seat, "held")
    pool.turn()
    assert_refused(pool, demanding, "(instance 1: held)")
    assert short.phase is Phase.WAITING
    pool.fill(0)
    pool.settle()
    assert short.outcome == "finished"


def test_without_any_instance_to_come_every_prompt_is_refused_at_once() -> None:
    pool = pool_of_four()
    for_decode = pool.submit(10, room=7)
    assert for_decode.phase is Phase.ARRIVED
    down(pool, 0, 1, 2, 3)
    for seat in range(4):
        pool.lifecycle.on_seat_stays_down(seat, "held")
    short = pool.submit(10)
    pool.turn()
    assert_refused(pool, short, "instances 0-3: held")
    assert_refused(pool, for_decode, "instances 0-3: held")


def test_admission_goes_by_the_whole_pool() -> None:
    pool = pool_of_four()
    down(pool, 0, 1, 2)
    assert not pool.submit(ALL_FOUR).error
    too_long = pool.submit(5 * CAPACITY)
    assert too_long.phase is Phase.ENDED
    assert pool.statuses[too_long.tokenized] == int(HTTPStatus.BAD_REQUEST)


def test_who_demands_an_absent_seat_is_told_of_its_plan() -> None:
    """A shorter prompt would not help."""
    pool = pool_of_four()
    down(pool, 2, 3)
    request = pool.submit(64, plan=[(64, [2])])
    pool.lifecycle.on_seat_stays_down(3, "it was drained")
    waits(pool, request, 2.0)
    pool.lifecycle.on_seat_stays_down(2, "3 deaths within 10 minutes")
    pool.turn()
    words = "the plan that the request demands names instances that stay down"
    reason = "(instance 2: 3 deaths within 10 minutes)"
    assert_refused(pool, request, f"{words} {reason}", '{"2": "start"}', "without a plan")


def test_who_demands_a_seat_that_comes_back_too_late_is_told_of_its_plan() -> None:
    pool = pool_of_four()
    down(pool, 2, 3)
    request = pool.submit(64, plan=[(64, [2])])
    waits(pool, request, DEFAULT_SEAT_TIMEOUT_S - 1)
    pool.now_s += 2.0
    pool.turn()
    assert_refused(pool, request, "demands names instance 2, absent for more than", "120 s")
