"""The arithmetic of chunks beside decode steps, and whether a prompt borrows decode's instances."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner.borrowing import borrowed, lost_s
from sglang_cdsp.planner.stretches import (
    LEAST_S,
    LEAST_SHARE,
    LONGEST_S,
    MOST_SHARE,
    chunk_pace,
    least_target_s,
    share_for,
    stretch_s,
)
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView, Running

steps = st.floats(1e-4, 2.0)


@given(steps, st.floats(LEAST_SHARE, MOST_SHARE))
def test_the_rest_of_the_time_is_decodes(step: float, share: float) -> None:
    stretch = stretch_s(step, share)
    if LEAST_S < stretch < LONGEST_S:
        assert chunk_pace(step, share) == pytest.approx(1 - share)
    assert chunk_pace(step, share) * (stretch + step) == pytest.approx(stretch)


@given(steps, st.floats(1e-3, 10.0))
def test_a_target_that_can_be_met_is_met(step: float, target: float) -> None:
    share = share_for(target, step)
    assert LEAST_SHARE <= share <= MOST_SHARE
    felt = stretch_s(step, share) + step
    if target >= least_target_s(step):
        assert felt <= target * (1 + 1e-9)
    else:
        assert felt == pytest.approx(least_target_s(step))


def plan(seconds: float, *instances: int) -> Plan:
    return Plan((PlannedChunk(1000, instances, 0.0, seconds),), seconds, "test")


def view(*running: Running) -> PoolView:
    return PoolView((0.0,) * len(running), None, 4, running=running)


def chosen(pool: PoolView) -> tuple[int, ...]:
    """A prompt of 4 s on one instance, 2 s on two."""

    def planned(seen: PoolView, factor: float) -> Plan | None:
        up = [i for i in range(seen.size) if seen.up is None or seen.up[i]]
        return plan(factor * 4.0 / len(up), *up)

    found = borrowed(planned, pool)
    assert found is not None
    return found.instances


def test_a_prompt_borrows_where_it_gains_more_than_the_running_lose() -> None:
    # On both it takes 2.5 s, and gains 1.5 s. Each token that comes meanwhile is 0.4 s late.
    few, many = Running(1, 3.0, 0.8, 0.4), Running(1, 100.0, 0.8, 0.4)
    assert lost_s(plan(2.5, 0, 1), view(Running(), few)) == pytest.approx(1.2)
    assert lost_s(plan(2.5, 0, 1), view(Running(), many)) == pytest.approx(2.0)
    assert chosen(view(Running(), few)) == (0, 1)
    assert chosen(view(Running(), many)) == (0,)
    assert chosen(view(Running(), Running(2, 3.0, 0.8, 0.4))) == (0,)


def test_a_chunk_that_starts_later_delays_what_is_left_by_then() -> None:
    first = PlannedChunk(500, (0,), 0.0, 1.0)
    both = Plan((first, PlannedChunk(500, (0, 1), 1.0, 2.0)), 2.0, "test")
    decoding = view(Running(), Running(2, 3.0, 0.8, 0.4))
    assert lost_s(plan(2.0, 0, 1), decoding) == pytest.approx(2 * 1.2)
    assert lost_s(both, decoding) == pytest.approx(2 * 0.2)
    late = Plan((replace(first, end_s=1.3), replace(both.chunks[1], start_s=1.3)), 2.0, "test")
    assert lost_s(late, decoding) == 0.0


def test_where_all_decode_there_is_no_other_way() -> None:
    busy = Running(50, 1000.0, 0.5, 1.0)
    assert chosen(view(busy, busy)) == (0, 1)
