"""Plans that start from cached prefixes, in any order of what may happen to them, in both forms."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.feed.reasons import reasons_of
from sglang_cdsp.controller.feed.recent import computed_tokens
from sglang_cdsp.controller.feed.records import record as shown
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.plan_log import record
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.any_order import SETTINGS
from tests.controller.cases import phase_is
from tests.controller.reusing import ReusingPool, ReusingPrefillPool
from tests.controller.reusing_order import AnyOrderReusing, AnyOrderReusingBeforeDecode

AnyOrderReusing.TestCase.settings = SETTINGS
TestAnyOrderReusing = AnyOrderReusing.TestCase

AnyOrderReusingBeforeDecode.TestCase.settings = SETTINGS
TestAnyOrderReusingBeforeDecode = AnyOrderReusingBeforeDecode.TestCase


@pytest.fixture
def pool() -> ReusingPool:
    return ReusingPool(size=4, policy="cdsp", page_size=16)


def reusing(pool: ReusingPool, tokens: int = 1500):  # type: ignore[no-untyped-def]
    """A request whose plan starts from a prefix."""
    for _ in range(20):
        request = pool.submit(tokens)
        pool.turn()
        if request.plan is not None and request.plan.reused:
            return request
    raise AssertionError("no plan reuses anything")


def test_home_holds_the_prefix_and_decodes(pool: ReusingPool) -> None:
    request = reusing(pool)
    assert request.plan.tokens + request.plan.reused == 1500
    pool.until(lambda: phase_is(request, Phase.DECODING))
    assert request.home == request.plan.home
    pool.settle()
    assert request.outcome == "finished"
    told = record(request, unix_offset_s=0.0)["prefix"]
    assert told["reused_tokens"] == request.plan.reused
    assert "cached tokens on instance" in told["choice"]
    assert not told["missed"]


def test_the_page_tells_what_was_reused_and_counts_what_was_computed(pool: ReusingPool) -> None:
    request = reusing(pool)
    why = reasons_of(request, pool.planning, pool.page_size)
    assert why is not None
    assert f"Start: {request.plan.choice}." in why["words"]
    pool.settle()
    assert shown(request, 1)["reused"] == request.plan.reused
    assert computed_tokens(request) == 1500 - request.plan.reused


def test_a_home_that_misses_costs_another_plan_and_nothing_else(pool: ReusingPool) -> None:
    request = reusing(pool)
    home, seq = request.plan.home, request.seq
    name = f"{home} misses the prefix of {seq}"
    pool.until(lambda: any(move.name == name for move in pool.moves()))
    pool.happen(name)
    pool.until(lambda: request.seq != seq and request.plan is not None)
    assert pool.prefixes.misses == [request]
    assert request.plan.reused == 0
    assert request.losses == 0
    pool.settle()
    assert request.outcome == "finished"
    assert record(request, unix_offset_s=0.0)["prefix"]["missed"]


def test_a_holder_that_is_lost_before_anything_ran_costs_another_plan(pool: ReusingPool) -> None:
    request = reusing(pool)
    assert phase_is(request, Phase.BOUND)
    home = request.plan.home
    pool.lose(home)
    pool.confirm(home)
    pool.settle()
    assert request.outcome == "finished"


# -- before decode servers ----------------------------------------------------------------


@pytest.fixture
def before_decode() -> ReusingPrefillPool:
    return ReusingPrefillPool(size=4, policy="cdsp", page_size=16)


def with_room(pool: ReusingPrefillPool, tokens: int, room: int) -> PoolRequest:
    """A request whose KV decode waits for."""
    request = pool.submit(tokens, room=room)
    pool.decode_sends(room, 0)
    pool.turn()
    return request


def reusing_before(pool: ReusingPrefillPool) -> PoolRequest:
    """One whose plan starts from a prefix."""
    for room in range(20):
        request = with_room(pool, 1500, room)
        if request.plan is not None and request.plan.reused:
            return request
        pool.settle()
    raise AssertionError("no plan reuses anything")


def test_decode_gets_the_prefix_and_the_rest(before_decode: ReusingPrefillPool) -> None:
    pool = before_decode
    request = reusing_before(pool)
    assert request.plan is not None
    assert request.room is not None
    assert request.keeps
    pool.settle()
    assert request.outcome == "finished"
    sends = pool.sends[request.seq].values()
    reused = [send for send in sends if any(span.start == 0 for span in send.spans)]
    assert [send.instance for send in reused] == [request.plan.home]
    assert sum(span.tokens for send in sends for span in send.spans) == 1500
    assert pool.told_finished[request.room] == 1
    assert record(request, unix_offset_s=0.0)["prefix"]["reused_tokens"] == request.plan.reused


def test_a_miss_before_decode_costs_another_plan(before_decode: ReusingPrefillPool) -> None:
    pool = before_decode
    request = reusing_before(pool)
    assert request.plan is not None
    assert request.room is not None
    home, seq = request.plan.home, request.seq
    name = f"{home} misses the prefix of {seq}"
    pool.until(lambda: any(move.name == name for move in pool.moves()))
    pool.happen(name)
    pool.until(lambda: request.seq != seq and request.plan is not None)
    assert pool.prefixes.misses == [request]
    assert request.plan.reused == 0
    pool.settle()
    assert request.outcome == "finished"
    assert pool.told_finished[request.room] == 1
    assert not pool.told_failed


def test_a_home_is_promised_the_whole_prompt_only_where_much_is_left() -> None:
    """Prompts that come meanwhile need slots there, too."""
    pool = ReusingPrefillPool(size=2, policy="cdsp", page_size=16, capacity=1024)
    pool.prefixes.held = lambda rid: ()  # type: ignore[method-assign]
    fits = with_room(pool, 700, 0)
    assert fits.keeps
    pool.settle()
    too_long = with_room(pool, 900, 1)
    assert too_long.plan is not None
    assert not too_long.keeps
    pool.settle()
    assert pool.ledger.free_tokens() == (1024, 1024)


@pytest.mark.parametrize("policy", ["cdsp-paper", "single-chunk"])
def test_nothing_is_kept_where_no_plan_could_start_from_it(policy: str) -> None:
    pool = ReusingPrefillPool(size=2, policy=policy, page_size=16)
    assert not with_room(pool, 700, 0).keeps
    pool.settle()
    assert pool.kept == []
