"""Cached prefixes are copied between instances, in any order of what may happen to them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.plan_log import record
from sglang_cdsp.controller.prefixes.copy import Copy, Reason
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.roles import Role, Roles
from sglang_cdsp.planner.types import Plan, PlannedChunk
from tests.controller.any_order import SETTINGS
from tests.controller.cases import phase_is
from tests.controller.copying import CopyingPool
from tests.controller.reusing_order import AnyOrderReusing


class AnyOrderCopying(AnyOrderReusing):
    """As with prefixes alone, but some of them are copied first."""

    make_pool = CopyingPool

    @rule(tokens=st.integers(300, 1500), choices=st.lists(st.integers(0, 1000), max_size=8))
    def a_prefix_is_copied(self, tokens: int, choices: list[int]) -> None:
        """Many of one length ask for a prefix, so that it is copied; then something happens."""
        for _ in range(3):
            self._submit(self.pool.request(tokens), None, "no decode")
            self.pool.turn()
        self.things_happen(choices or [0], faults=bool(len(choices) % 2))

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "pool"):
            assert isinstance(self.pool, CopyingPool)
            assert not self.pool.lifecycle.copies, "a copy is never over"
            assert not self.pool.ledger._copies
            for copy in self.pool.copied:
                assert bool(copy.error) != (copy.arrived_s is not None)


AnyOrderCopying.TestCase.settings = settings(SETTINGS, derandomize=True, database=None)
TestAnyOrderCopying = AnyOrderCopying.TestCase


@pytest.fixture
def pool() -> CopyingPool:
    """Instance 3 decodes only, and has a prefix of every prompt."""
    pool = CopyingPool(size=4, policy="cdsp", page_size=16)
    pool.lifecycle.on_roles(Roles((Role.PREFILL,) * 3 + (Role.DECODE,)), "a test")

    def waits(request: PoolRequest) -> None:
        if not request.missed:
            pool.prefixes._drawn[request.rid] = request, ((3, 1200),)

    pool.prefixes.waits = waits  # type: ignore[method-assign]
    pool.prefixes.holders = lambda pages: ([3], [])  # type: ignore[method-assign]
    return pool


def copied(pool: CopyingPool) -> tuple[PoolRequest, Copy]:
    """A request whose plan starts from a copy, and that copy."""
    request = pool.submit(1500)
    pool.turn()
    assert request.plan is not None
    assert request.plan.copy is not None
    assert request.copy is not None
    return request, pool.lifecycle.copies._copies[request.copy]


def test_a_prefix_on_a_seat_that_only_decodes_is_copied_to_the_plans_home(
    pool: CopyingPool,
) -> None:
    request, copy = copied(pool)
    assert request.plan is not None
    assert (copy.source, copy.target, copy.tokens) == (3, request.plan.home, 1200)
    assert copy.reason is Reason.PLAN
    assert request.plan.reused == 1200
    ready = f"{copy.target} is ready for chunk 0"
    assert not any(move.name.startswith(ready) for move in pool.moves()), "it waits for the copy"
    pool.settle()
    assert request.outcome == "finished"
    assert pool.copied == [copy]
    assert copy.arrived_s is not None
    told = record(request, unix_offset_s=0.0)["prefix"]
    assert told["copy"] == {"from": 3, "tokens": 1200, "seconds": pytest.approx(0.01, abs=1e-3)}
    assert "1200 of them copied from instance 3" in told["choice"]
    shown = pool.lifecycle.copies.snapshot()
    assert shown["made"] == {"plan": 1, "use": 0}
    assert (shown["tokens"], shown["bytes"], shown["failed"]) == (1200, 1200, 0)
    assert not pool.lifecycle.chunk_running


@pytest.mark.parametrize("fault", ["3 lacks copy", "has no room for copy", "loses copy"])
def test_a_copy_that_fails_costs_another_plan_and_nothing_else(
    pool: CopyingPool, fault: str
) -> None:
    request, copy = copied(pool)
    seq = request.seq

    def faults() -> list[str]:
        return [move.name for move in pool.moves() if fault in move.name]

    pool.until(lambda: bool(faults()))
    pool.happen(faults()[0])
    pool.until(lambda: request.seq != seq and request.plan is not None)
    assert request.plan is not None
    assert request.plan.reused == 0
    assert copy.error
    pool.settle()
    assert request.outcome == "finished"
    assert pool.lifecycle.copies.snapshot()["failed"] == 1


@pytest.mark.parametrize("end", ["source", "target"])
def test_an_end_that_is_lost_ends_the_copy(pool: CopyingPool, end: str) -> None:
    request, copy = copied(pool)
    pool.until(lambda: copy.source in copy.inside)
    seat = copy.source if end == "source" else copy.target
    pool.lose(seat)
    assert seat not in copy.inside
    pool.confirm(seat)
    pool.settle()
    assert "was lost" in copy.error
    assert not pool.lifecycle.copies
    if end == "target":
        assert request.outcome == "finished"


def test_who_starts_from_it_while_it_is_copied_waits_for_the_same_copy(pool: CopyingPool) -> None:
    _, copy = copied(pool)
    copies, later = pool.lifecycle.copies, pool.request(1400)

    def starts_at(home: int, reused: int) -> int | None:
        chunk = PlannedChunk(1400 - reused, (home,), 0.0, 1.0)
        assert copies.serve(later, Plan((chunk,), 1.0, "cdsp", reused=reused, cached=reused))
        return later.copy

    assert starts_at(copy.target, 1200) == copy.number
    assert starts_at(copy.target, 160) == copy.number
    assert starts_at(copy.target, 1392) is None, "more than comes"
    assert starts_at((copy.target + 1) % 3, 1200) is None
    pool.settle()
    assert starts_at(copy.target, 1200) is None, "it has come"


def test_without_a_lane_the_plan_starts_from_what_is_there(pool: CopyingPool) -> None:
    lanes = pool.lifecycle.copies._lanes
    for number in range(100, 108):
        assert lanes.take(number, (0, 1, 2, 3)) is not None
    request = pool.submit(1500)
    pool.turn()
    pool.turn()
    assert request.plan is not None
    assert request.plan.copy is None
    assert request.plan.reused == 0
    assert request.uncopied
    for number in range(100, 108):
        lanes.give_back(number)
    pool.lifecycle._progress.lane_left()
    pool.settle()
    assert request.outcome == "finished"


def test_what_is_asked_for_often_gets_a_second_copy(pool: CopyingPool) -> None:
    def waits(request: PoolRequest) -> None:
        pool.prefixes._drawn[request.rid] = request, ((0, 1200),)

    pool.prefixes.waits = waits  # type: ignore[method-assign]
    pool.prefixes.holders = lambda pages: ([0], [])  # type: ignore[method-assign]
    made = pool.lifecycle.copies
    made._hot._clock = lambda: 0.0
    made_after = []
    for _ in range(4):
        pool.submit(1300)
        pool.settle()
        made_after.append(made.snapshot()["made"]["use"])
    assert made_after == [0, 0, 0, 1], "each of two copies would be used twice"
    (copy,) = (copy for copy in pool.copied if copy.reason is Reason.USE)
    assert copy.source == 0
    assert copy.target in (1, 2), "no seat that takes no chunks"
    assert not pool.ledger._copies


def test_a_request_that_is_aborted_leaves_its_copy_to_arrive(pool: CopyingPool) -> None:
    request, copy = copied(pool)
    pool.lifecycle.on_abort(request.rid, "aborted by the client", everything=False)
    pool.settle()
    assert phase_is(request, Phase.ENDED)
    assert copy.arrived_s is not None
