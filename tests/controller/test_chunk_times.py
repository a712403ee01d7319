"""How long a chunk took by what its members say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.controller.request import ChunkTimes


def test_what_ran_before_all_members_had_begun_is_not_counted() -> None:
    times = ChunkTimes()
    # The first one waits for the second, runs something else meanwhile, and once more inside.
    times.ran(0, 10.0, 14.0, 2.5)
    times.ran(1, 12.0, 14.0, 0.0)
    assert (times.start_s, times.end_s) == (12.0, 14.0)
    assert times.passed_s == pytest.approx(0.5)


def test_the_same_thing_at_two_members_counts_once() -> None:
    times = ChunkTimes()
    times.ran(0, 1.0, 3.0, 0.75)
    times.ran(1, 1.0, 3.0, 0.5)
    assert times.passed_s == pytest.approx(0.75)


@given(
    st.lists(
        st.tuples(st.floats(1, 9), st.floats(0.01, 9), st.floats(0, 0.99)), min_size=1, max_size=8
    )
)
def test_something_is_left_of_every_chunk(members: list[tuple[float, float, float]]) -> None:
    times = ChunkTimes()
    latest_s = max(start_s for start_s, _, _ in members)
    for instance, (start_s, seconds, share) in enumerate(members):
        # Nobody ends before the last one has begun.
        end_s = max(start_s, latest_s) + seconds
        times.ran(instance, start_s, end_s, share * (end_s - start_s))
    assert times.start_s is not None
    assert times.end_s is not None
    assert 0 <= times.passed_s < times.end_s - times.start_s
