"""What the planner is shown of requests that decode, and how fast it reckons chunks beside them."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.decode_shares import DecodeShares
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.roles import roles_of
from sglang_cdsp.planner.types import Plan, PlannedChunk

MODEL = LatencyModel(tuple((s, Coefficients(0.0, 1e-3 / s, 0.0, 0.0)) for s in (1, 2)))


@pytest.fixture
def ledger() -> InstanceLedger:
    """Two instances; a decode step takes 0.1 s, a stretch beside it 0.4 s."""
    made = InstanceLedger((10_000, 10_000), 1, 2, decode=DecodeShares(0.2, None))
    made.taken(0, 0, 0.1)
    return made


def bound(ledger: InstanceLedger, seq: int, instance: int, left: int = 100) -> None:
    plan = Plan((PlannedChunk(1000, (instance,), 0.0, 1.0),), 1.0, "test")
    ledger.bind(seq, plan, 0.0, {instance: 1000 + left}, tokens_left=lambda: left)


def decoding(ledger: InstanceLedger, seq: int, instance: int, left: int) -> None:
    bound(ledger, seq, instance, left)
    ledger.computed(seq)
    ledger.keep_only(seq, instance)


def test_nobody_decodes(ledger: InstanceLedger) -> None:
    assert ledger.view(0.0).running == ()
    assert ledger.pace((0, 1), 0.2) == 1.0


def test_what_decodes_is_shown_until_it_ends(ledger: InstanceLedger) -> None:
    decoding(ledger, 0, 0, 100)
    decoding(ledger, 1, 0, 300)
    here, other = ledger.view(0.0).running
    assert (here.requests, here.tokens_left) == (2, 200.0)
    assert (here.pace, here.stretch_s) == pytest.approx((0.8, 0.4))
    assert (other.requests, other.pace) == (0, 1.0)
    assert ledger.pace((1,), 0.2) == 1.0
    assert ledger.pace((1, 0), 0.2) == pytest.approx(0.8)
    assert ledger.pace((1, 0), 0.1) == pytest.approx(0.9), "of the chunk, not of now"
    ledger.release(0)
    ledger.release(1)
    assert ledger.view(0.0).running == ()


def test_a_group_is_timed_as_its_slowest_member(ledger: InstanceLedger) -> None:
    decoding(ledger, 0, 0, 100)
    view = ledger.view(0.0)
    assert timed_plan(((2000, (1,)),), MODEL, view).ttft_s == pytest.approx(2.0)
    assert timed_plan(((2000, (1, 0)),), MODEL, view).ttft_s == pytest.approx(1.0 / 0.8)


def test_a_lost_instance_decodes_nothing(ledger: InstanceLedger) -> None:
    decoding(ledger, 0, 0, 100)
    ledger.emptied(0)
    assert ledger.view(0.0).running == ()


@pytest.fixture
def priced() -> InstanceLedger:
    """Two instances whose shares follow a price; a decode step takes 10 ms."""
    made = InstanceLedger((10_000, 10_000), 1, 2, decode=DecodeShares(None, None))
    made.taken(0, 0, 0.01)
    return made


def test_a_chunk_that_starts_is_set_against_those_that_run_and_those_that_wait(
    priced: InstanceLedger,
) -> None:
    decoding(priced, 0, 0, 100)
    bound(priced, 1, 0)
    assert priced.decode_share((0,)) == pytest.approx(0.2), "its own prompt is all that waits"
    for seq in (2, 3, 4):
        bound(priced, seq, 0)
    assert priced.decode_share((0,)) == pytest.approx(0.2 / 4**2)
    assert priced.decode_share((1, 0)) == pytest.approx(0.2 / 4**2)
    assert priced.decode_share((1,)) == pytest.approx(0.2)
    decoding(priced, 5, 0, 100)
    assert priced.decode_share((0,)) == pytest.approx(0.2 * (2 / 4) ** 2)
    priced.computed(1)
    assert priced.decode_share((0,)) == pytest.approx(0.2 * (2 / 3) ** 2), "it has had its chunks"


def test_prompts_without_a_plan_wait_for_all_who_take_chunks(priced: InstanceLedger) -> None:
    decoding(priced, 0, 0, 100)
    bound(priced, 1, 0)
    priced.unplanned = lambda: 4
    assert priced.decode_share((0,)) == pytest.approx(0.2 / 3**2)
    priced.take_roles(roles_of("1p1d", 2))
    priced.unplanned = lambda: 3
    assert priced.decode_share((0,)) == pytest.approx(0.2 / 4**2)


def test_who_waits_in_an_instances_own_queue_does_not_run(priced: InstanceLedger) -> None:
    decoding(priced, 0, 0, 100)
    bound(priced, 1, 0)
    bound(priced, 2, 0)
    priced.decodes(2)
    assert priced.decode_share((0,)) == pytest.approx(0.2 / 2**2)
    priced.computed(2)
    assert priced.decode_share((0,)) == pytest.approx(0.2), "it has its first token"


def test_plans_are_timed_by_the_share_that_a_chunk_would_get_now(priced: InstanceLedger) -> None:
    decoding(priced, 0, 0, 100)
    assert priced.view(0.0).running[0].pace == pytest.approx(0.8)
    priced.unplanned = lambda: 4
    here = priced.view(0.0).running[0]
    assert here.pace == pytest.approx(1 - 0.2 / 2**2)
    assert here.stretch_s == pytest.approx(0.01 * (2**2 / 0.2 - 1))
