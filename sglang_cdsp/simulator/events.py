"""The agenda of a run: what happens next."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

Event = tuple[float, int, Callable[[float, Any], None], Any]
"""(time in seconds, order of making, act, what): `act(time, what)` is called at that time."""


class Agenda:
    """The agenda: events by time; those of one moment in the order in which they were made."""

    __slots__ = ("_made", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._made = 0

    def at(self, time_s: float, act: Callable[[float, Any], None], what: Any) -> None:
        """Have `act(time_s, what)` called at that time."""
        self._made += 1
        heappush(self.events, (time_s, self._made, act, what))
