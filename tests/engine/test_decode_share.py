"""How long chunks go on beside requests that decode."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine.decode_share import DecodeShare
from sglang_cdsp.planner.stretches import LONGEST_S

ALONE_S = 0.02
SHARES = st.floats(0.01, 0.5)
STEPS = st.lists(st.floats(1e-3, 0.2), min_size=1, max_size=20)


def after(steps: list[float]) -> DecodeShare:
    pace = DecodeShare(ALONE_S)
    for seconds in steps:
        pace.stepped(seconds)
    return pace


@settings(deadline=None)
@given(STEPS, SHARES)
def test_decode_gets_its_share_as_long_as_stretches_are_bounded(
    steps: list[float], share: float
) -> None:
    pace = after(steps)
    step_s = pace.step_s
    assert step_s is not None
    assert min(steps) - 1e-9 <= step_s <= max(steps) + 1e-9
    stretch_s = pace.stretch_s(share, decodes=True)
    assert ALONE_S <= stretch_s <= LONGEST_S
    if ALONE_S < stretch_s < LONGEST_S:
        assert step_s / (step_s + stretch_s) == pytest.approx(share)


@settings(deadline=None)
@given(STEPS, SHARES)
def test_a_stretch_is_no_shorter_than_a_step(steps: list[float], share: float) -> None:
    pace = after(steps)
    assert pace.step_s is not None
    assert pace.stretch_s(share, decodes=True) >= pace.step_s * (1 - 1e-9)


def test_where_nobody_decodes_the_loop_gets_its_turn_as_before() -> None:
    assert after([0.1]).stretch_s(0.2, decodes=False) == ALONE_S
    assert after([0.1]).stretch_s(0.0, decodes=True) == ALONE_S
    assert DecodeShare(ALONE_S).stretch_s(0.2, decodes=True) == ALONE_S
