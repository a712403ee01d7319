"""What ``POST /cdsp/update`` says of seats: ``{"seats": {"3": "drain", "1": "start"}}``."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.controller.seats.states import SeatState
from sglang_cdsp.controller.seats.table import SeatTable

KEY = "seats"
DRAIN, START = "drain", "start"


def read_wishes(body: Any, table: SeatTable) -> dict[int, str]:
    """What is asked of seats, by seat; empty where the body says nothing of them.

    Raises:
        ValueError: something cannot be done, and nothing is; says what, and what can be.
    """
    if not isinstance(body, dict) or KEY not in body:
        return {}
    asked = body[KEY]
    if not isinstance(asked, dict) or not asked:
        raise ValueError(f'"{KEY}" takes seats and what becomes of them, like {{"3": "{DRAIN}"}}')
    wishes: dict[int, str] = {}
    for name, wish in asked.items():
        if not (isinstance(name, str) and name.isascii() and name.isdigit()):
            raise ValueError(f'there is no seat {name!r}: write its number as text, like "3"')
        if wish not in (DRAIN, START):
            raise ValueError(f'seat {name} cannot be told {wish!r}: "{DRAIN}" or "{START}"')
        table.check(int(name))
        wishes[int(name)] = wish
    leaving = {seat for seat, wish in wishes.items() if wish == DRAIN}
    for seat in leaving:
        table.check_drain(seat)
    up = set(table.in_state(SeatState.UP))
    if leaving & up and not up - leaving:
        raise ValueError(
            f"seats {sorted(leaving & up)} are the last ones that work: start another before they "
            "are drained"
        )
    return wishes
