"""The decode share by its price: what it follows, and where it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner.decode_price import USUAL_SHARE, priced_share
from sglang_cdsp.planner.stretches import LEAST_SHARE, LONGEST_S, MOST_SHARE, stretch_s

counts = st.floats(0.0, 1e4)
steps = st.floats(0.0, 5.0)


@given(counts, counts, steps)
def test_it_is_a_share(running: float, waiting: float, step: float) -> None:
    share = priced_share(running, waiting, step)
    assert LEAST_SHARE <= share <= USUAL_SHARE <= MOST_SHARE


@given(counts, counts, steps)
def test_it_is_the_usual_one_while_as_many_run_as_wait(
    running: float, more: float, step: float
) -> None:
    assert priced_share(running + more, running, step) == USUAL_SHARE


@given(counts, counts, counts, steps)
def test_it_grows_with_those_that_run_and_falls_with_those_that_wait(
    running: float, waiting: float, more: float, step: float
) -> None:
    share = priced_share(running, waiting, step)
    assert priced_share(running + more, waiting, step) >= share
    assert priced_share(running, waiting + more, step) <= share


@given(counts, st.floats(1e-3, 5.0))
def test_it_does_not_fall_where_the_stretch_does_not_grow(running: float, step: float) -> None:
    least = priced_share(running, 1e9, step)
    assert least == pytest.approx(min(max(step / (step + LONGEST_S), LEAST_SHARE), USUAL_SHARE))
    if LEAST_SHARE < least < USUAL_SHARE:
        assert stretch_s(step, least) == pytest.approx(LONGEST_S)


def test_in_between_it_falls_by_the_square() -> None:
    assert priced_share(6, 12, 0.001) == pytest.approx(USUAL_SHARE / 4)
    assert priced_share(0, 2, 0.001) == pytest.approx(USUAL_SHARE / 4), "one may come meanwhile"
    assert priced_share(0, 0) == USUAL_SHARE
