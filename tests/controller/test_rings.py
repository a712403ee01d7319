"""Chunks that prompts pass, as the ledger reckons with them; worked out by hand."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.ledger import RESERVE_TOKENS, InstanceLedger
from sglang_cdsp.controller.rings import Ring
from sglang_cdsp.planner.types import Plan, PlannedChunk


def plan(group: tuple[int, ...], start_s: float, end_s: float, *, passes: bool = False) -> Plan:
    return Plan((PlannedChunk(10, group, start_s, end_s),), end_s, "test", passes=passes)


def test_a_chunk_stands_still_from_its_next_layer_on() -> None:
    """8 s in 4 layers, started at 100; at 103 a prompt of 1 s passes at member 1."""
    ring = Ring((0, 1), 100.0, 8.0, 4)
    seen = ring.passable(103.0, 8.0, 3.0, 1.6)
    assert (seen.left_s, seen.boundary_s, seen.resume_s) == (5.0, 1.0, 1.0)
    assert seen.taken_s == (0.0, 0.0)
    assert ring.put_off((1, 2), 103.0, 105.0) == 1.0
    seen = ring.passable(104.5, 8.0, 4.5, 0.6)
    assert (seen.left_s, seen.boundary_s, seen.resume_s) == (4.0, 0.0, 0.5)
    assert seen.taken_s == (0.0, 0.5)
    later = ring.passable(106.0, 8.0, 6.0, 0.6)
    assert (later.left_s, later.boundary_s) == (3.0, 1.0), "a layer ends at 107 now"


def test_who_fits_beside_another_that_passes_delays_nobody() -> None:
    ring = Ring((0, 1), 0.0, 4.0, 4)
    assert ring.put_off((0,), 0.5, 3.0) == 2.0
    assert ring.put_off((1,), 1.5, 2.5) == 0.0
    assert ring.put_off((1,), 1.5, 3.5) == 0.5
    assert ring.passable(3.5, 4.0, 3.5, 1.0).left_s == 3.0


def test_a_late_chunk_has_nothing_left_and_can_be_passed_at_once() -> None:
    ring = Ring((0,), 0.0, 4.0, 4)
    seen = ring.passable(9.0, 4.0, 9.0, -1.0)
    assert (seen.left_s, seen.boundary_s, seen.budget_s) == (0.0, 0.0, 0.0)


@pytest.fixture
def ledger() -> InstanceLedger:
    capacity = (1000 + RESERVE_TOKENS,) * 3
    return InstanceLedger(capacity, 1, 3, layers=4, preempt_budget=0.25)


def test_what_passes_puts_off_the_chunk_and_what_stands_behind_it(ledger: InstanceLedger) -> None:
    long = plan((0, 1), 0.0, 8.0)
    ledger.bind(0, long, 100.0, {})
    ledger.bind(1, plan((1, 2), 8.0, 10.0), 100.0, {})
    assert ledger.view(100.0).passable == (), "nothing runs yet"
    ledger.started(0, long.chunks[0], 100.0)
    (seen,) = ledger.view(100.0).passable
    assert seen.budget_s == 0.5, "the plan behind it takes 2 s and may be delayed by a quarter"
    ledger.bind(2, plan((0,), 0.0, 0.4, passes=True), 100.0, {})
    view = ledger.view(100.0)
    assert view.queue_s == pytest.approx((8.4, 10.4, 10.4))
    assert view.passable[0].budget_s == pytest.approx(0.1)
    ledger.started(2, PlannedChunk(10, (0,), 0.0, 0.4), 100.0)
    assert len(ledger.view(100.0).passable) == 1, "nobody passes a prompt that passes"
    ledger.ended(2, 0, 101.0)
    ledger.computed(2)
    assert ledger.view(101.0).queue_s == pytest.approx((7.4, 9.4, 9.4)), "its end says no more"
    ledger.ended(0, 0, 109.0)
    assert ledger.view(109.0).passable == ()
    assert ledger.view(109.0).queue_s == pytest.approx((0.0, 2.0, 2.0))


def test_without_a_budget_nothing_may_be_passed() -> None:
    ledger = InstanceLedger((1000,), 1, 1)
    long = plan((0,), 0.0, 8.0)
    ledger.bind(0, long, 0.0, {})
    ledger.started(0, long.chunks[0], 0.0)
    assert ledger.view(1.0).passable == ()


def test_a_plan_without_a_time_is_not_passed(ledger: InstanceLedger) -> None:
    """A probe of an instance that joins: policies divide by what a chunk takes."""
    probe = plan((0, 1), 0.0, 0.0)
    ledger.bind(0, probe, 100.0, {})
    ledger.started(0, probe.chunks[0], 100.0)
    assert ledger.view(100.0).passable == ()
