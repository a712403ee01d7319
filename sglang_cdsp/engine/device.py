"""Where the device that computes is, as far as the host can ask: events, pace and times.

On CUDA a forward is launched long before it has run. The host asks events, which it records
between the pieces that it launches. Where the host computes itself there are no events.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import torch

Ready = Callable[[], bool]
"""Whether something has come about."""

PIECES_AHEAD = 2
"""Pieces that are launched and have not run, at most: one runs, one waits behind it.

What is launched cannot be taken back: whoever is more urgent waits until the device has run it.
With one piece alone the device would idle while the host launches the next.
"""


class Event(Protocol):
    """A point in the stream that was current when it was recorded: ``torch.cuda.Event``."""

    def record(self) -> None:
        """Put it behind all that is launched."""

    def query(self) -> bool:
        """Whether the device has come that far."""

    def elapsed_time(self, later: Event, /) -> float:
        """Milliseconds from this one to a later one; the device has passed both."""


class Events(Protocol):
    """Makes events; those with ``enable_timing`` know when the device passed them."""

    def __call__(self, *, enable_timing: bool = False) -> Event:
        """A new one, not recorded yet."""


def events_of(device: str) -> Events | None:
    """Events of a device, None where the host computes itself."""
    return cast(Events, torch.cuda.Event) if torch.device(device).type == "cuda" else None


def device_name(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What this process computes on, so that two of one name take the same time for the same.

    A CPU's has the threads and the cores that this process has of it.
    """
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name())
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads on {len(os.sched_getaffinity(0))} cores"


class Pace:
    """Gives way between pieces of a forward, and keeps the host near the device.

    It stands in for ``Coroutines.give_way`` at every boundary of one forward: before each layer,
    between ring steps, and between tiles. A piece is what is launched between two of these; tiles
    bound it in operations (``Pacing.tile_flops``), and so in time.
    """

    def __init__(self, give_way: Callable[[Ready | None], None], events: Events | None) -> None:
        """Pace one forward.

        Args:
            give_way: lets others go on until something is ready, see ``Coroutines.give_way``.
            events: of the device that computes; None where the host does.
        """
        self._give_way = give_way
        self._events = events
        self._launched: deque[Event] = deque()

    def __call__(self, ready: Ready | None = None) -> None:
        """A piece ends here. Return when the next may be launched and ``ready()`` is true.

        Raises:
            StoppedError: the chunk is not to go on.
        """
        near = self._near()
        if near is None or ready is None:
            self._give_way(near or ready)
        else:
            self._give_way(lambda: near() and ready())

    def _near(self) -> Ready | None:
        """Whether few enough pieces are ahead of the device; None where that is sure."""
        if self._events is None:
            return None
        event = self._events()
        event.record()
        self._launched.append(event)
        if len(self._launched) < PIECES_AHEAD:
            return None
        return self._launched.popleft().query


class Stopwatch:
    """How long the device takes from one point in its stream to another."""

    def __init__(self, events: Events) -> None:
        """Start here, behind all that is launched."""
        self._events = events
        self._start = events(enable_timing=True)
        self._start.record()

    def stop(
        self,
        give_way: Callable[[Ready | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> float:
        """Give way until the device has come here; return when it started, monotonic seconds.

        The end is when the host sees it; the start lies before it by what the events measured.
        """
        end = self._events(enable_timing=True)
        end.record()
        give_way(end.query)
        return clock() - self._start.elapsed_time(end) / 1000
