"""What people may ask of seats."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cdsp.controller.seats.table import SeatTable
from sglang_cdsp.controller.seats.wishes import read_wishes


def test_what_is_asked() -> None:
    table = SeatTable.all_up(3)
    assert read_wishes({"seats": {"2": "drain", "0": "start"}}, table) == {2: "drain", 0: "start"}
    assert read_wishes({"improvement_rate": 0.3}, table) == {}
    assert read_wishes([1], table) == {}


@pytest.mark.parametrize(
    ("seats", "words"),
    [
        ({}, "takes seats and what becomes of them"),
        (["3"], "takes seats and what becomes of them"),
        ({"three": "drain"}, "there is no seat 'three'"),
        ({"-1": "drain"}, "there is no seat '-1'"),
        ({"3": "drain"}, "there is no seat 3: they are 0 to 2"),
        ({"1": "stop"}, "seat 1 cannot be told 'stop'"),
        ({"1": None}, "seat 1 cannot be told None"),
        ({"0": "drain", "1": "drain", "2": "drain"}, "the last ones that work"),
    ],
)
def test_what_is_refused(seats: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_wishes({"seats": seats}, SeatTable.all_up(3))
