"""Max-min fair rates."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.simulator.links import max_min_rates

Ends = tuple[tuple[int, ...], tuple[int, ...]]

ends = st.sets(st.integers(0, 4), min_size=1).map(lambda s: tuple(sorted(s)))
transfers = st.lists(st.tuples(ends, ends), min_size=1, max_size=7)


@pytest.mark.parametrize(
    ("transfers", "rates"),
    [
        ([((0,), (0,))], [10]),
        ([((0, 1, 2, 3), (0,))], [30]),
        ([((0,), (0,)), ((1,), (0,))], [10, 10]),
        ([((0,), (0,)), ((0,), (1,))], [5, 5]),
        # Sender 0 gives 5 to each of two; of decode 0's 30 the rest goes to the wide transfer.
        ([((0,), (0,)), ((0,), (1,)), ((1, 2, 3), (0,))], [5, 5, 25]),
        ([((0, 1, 2, 3), (0,)), ((4, 5, 6, 7), (0,))], [15, 15]),
        ([((0, 1), (0,)), ((1, 2), (1,))], [10, 10]),
    ],
)
def test_by_hand(transfers: list[Ends], rates: list[float]) -> None:
    assert max_min_rates(transfers, 10.0, 30.0) == pytest.approx(rates)


@given(transfers, st.floats(1, 100), st.floats(1, 100))
@settings(max_examples=150, deadline=None, print_blob=True)
def test_nobody_could_have_more_without_taking_from_one_who_has_less(
    transfers: list[Ends], send: float, receive: float
) -> None:
    rates = max_min_rates(transfers, send, receive)
    load: dict[tuple[int, int], float] = defaultdict(float)
    most: dict[tuple[int, int], float] = defaultdict(float)
    for both, rate in zip(transfers, rates, strict=True):
        for side in (0, 1):
            for i in both[side]:
                load[side, i] += rate / len(both[side])
                most[side, i] = max(most[side, i], rate)
    capacity = (send, receive)
    assert all(used <= capacity[end[0]] * (1 + 1e-9) for end, used in load.items())
    for both, rate in zip(transfers, rates, strict=True):
        mine = [(side, i) for side in (0, 1) for i in both[side]]
        assert any(
            load[end] >= capacity[end[0]] * (1 - 1e-9) and rate >= most[end] * (1 - 1e-9)
            for end in mine
        )
