"""What the planner is shown of requests that decode, and how fast it reckons chunks beside them."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.decode_shares import DecodeShares
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.types import Plan, PlannedChunk

MODEL = LatencyModel(tuple((s, Coefficients(0.0, 1e-3 / s, 0.0, 0.0)) for s in (1, 2)))


@pytest.fixture
def ledger() -> InstanceLedger:
    """Two instances; a decode step takes 0.1 s, a stretch beside it 0.4 s."""
    made = InstanceLedger((10_000, 10_000), 1, 2, decode=DecodeShares(0.2, None))
    made.taken(0, 0, 0.1)
    return made


def decoding(ledger: InstanceLedger, seq: int, instance: int, left: int) -> None:
    plan = Plan((PlannedChunk(1000, (instance,), 0.0, 1.0),), 1.0, "test")
    ledger.bind(seq, plan, 0.0, {instance: 1000 + left}, tokens_left=lambda: left)
    ledger.computed(seq)
    ledger.keep_only(seq, instance)


def test_nobody_decodes(ledger: InstanceLedger) -> None:
    assert ledger.view(0.0).running == ()
    assert ledger.pace((0, 1)) == 1.0


def test_what_decodes_is_shown_until_it_ends(ledger: InstanceLedger) -> None:
    decoding(ledger, 0, 0, 100)
    decoding(ledger, 1, 0, 300)
    here, other = ledger.view(0.0).running
    assert (here.requests, here.tokens_left) == (2, 200.0)
    assert (here.pace, here.stretch_s) == pytest.approx((0.8, 0.4))
    assert (other.requests, other.pace) == (0, 1.0)
    assert ledger.pace((1,)) == 1.0
    assert ledger.pace((1, 0)) == pytest.approx(0.8)
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
