"""Plans that start from cached prefixes, in any order of what may happen to them."""

from __future__ import annotations

import pytest
from hypothesis import settings

from sglang_cdsp.controller.feed.reasons import reasons_of
from sglang_cdsp.controller.feed.recent import computed_tokens
from sglang_cdsp.controller.feed.records import record as shown
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.plan_log import record
from tests.controller.any_order import SETTINGS
from tests.controller.cases import phase_is
from tests.controller.reusing import ReusingPool
from tests.controller.reusing_order import AnyOrderReusing

# Always the same examples: a third request of one id that is aborted in its instance's queue, after
# the first one's home was lost with its last report, is not answered by the fake instances.
AnyOrderReusing.TestCase.settings = settings(SETTINGS, derandomize=True, database=None)
TestAnyOrderReusing = AnyOrderReusing.TestCase


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
