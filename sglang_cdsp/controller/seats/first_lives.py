"""The first lives of all seats: they come up together, or the server ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sglang_cdsp.controller.seats.launcher import Failing, Launcher, Started

POLL_S = 0.05


class StartFailedError(RuntimeError):
    """A scheduler ended before it was ready; the message says why, in one line."""


def start_all(launcher: Launcher, seats: int) -> dict[int, Mapping[str, Any]]:
    """Start a life on every seat and wait until all are ready.

    Returns:
        What the leading rank of each seat said of itself.

    Raises:
        StartFailedError: one of them failed.
    """
    for seat in range(seats):
        launcher.start(seat, 1, None)
    facts: dict[int, Mapping[str, Any]] = {}
    while len(facts) < seats:
        for event in launcher.poll():
            if isinstance(event, Failing):
                raise StartFailedError(
                    event.left
                    or f"a scheduler of instance {event.seat} failed while the pool started: "
                    f"{event.words}; its reason stands above, if it had the time to print one"
                )
            if isinstance(event, Started):
                facts[event.seat] = event.facts
        time.sleep(POLL_S)
    return facts
