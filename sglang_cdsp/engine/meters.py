"""How long each coroutine runs between two switches: by the host's clock, or by device events.

A chunk's own time is what is left of its duration when the stretches of the others are taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sglang_cdsp.engine.device import Event, Events


class Meter(Protocol):
    """Measures the stretches in which one coroutine runs."""

    def begin(self) -> Any:
        """Mark where a stretch begins."""

    def end(self, mark: Any, /) -> Callable[[], float | None]:
        """A stretch that began at ``mark`` ends here: its seconds, None as long as unknown."""


class HostMeter:
    """Implements ``Meter`` by a clock, for a host that computes itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock``: seconds."""
        self._clock = clock

    def begin(self) -> float:
        """Return the time."""
        return self._clock()

    def end(self, mark: float, /) -> Callable[[], float | None]:
        """Known at once."""
        seconds = self._clock() - mark
        return lambda: seconds


class DeviceMeter:
    """Implements ``Meter``: what a coroutine launched takes on the device.

    On one stream nothing else runs between two events of a stretch. Its length is known when the
    device has come to its end.
    """

    def __init__(self, events: Events) -> None:
        """``events`` of the device."""
        self._events = events

    def begin(self) -> Event:
        """Record where a stretch begins."""
        event = self._events(enable_timing=True)
        event.record()
        return event

    def end(self, mark: Event, /) -> Callable[[], float | None]:
        """Record where it ends."""
        event = self.begin()
        return lambda: mark.elapsed_time(event) / 1000 if event.query() else None
