"""The first lives of all seats: they come up together, or the server ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sglang_cdsp.controller.seats.launcher import Failing, Launcher, Started, Vitals
from sglang_cdsp.controller.seats.watch import SeatWatch

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
    watch = SeatWatch()
    facts: dict[int, Mapping[str, Any]] = {}
    while len(facts) < seats:
        for event in launcher.poll():
            if isinstance(event, Failing):
                raise StartFailedError(event.left or _words(event.seat, event.words))
            if isinstance(event, Started):
                facts[event.seat] = event.facts
        # A stopped process tells nobody, and whoever waits for it would wait for ever.
        for symptom in watch.look(time.monotonic(), _vitals(launcher, seats)):
            raise StartFailedError(_words(symptom.seat, symptom.words))
        time.sleep(POLL_S)
    return facts


def _vitals(launcher: Launcher, seats: int) -> dict[int, Vitals]:
    seen = ((seat, launcher.vitals(seat)) for seat in range(seats))
    return {seat: vitals for seat, vitals in seen if vitals is not None}


def _words(seat: int, words: str) -> str:
    return (
        f"a scheduler of instance {seat} failed while the pool started: {words}; "
        "its reason stands above, if it had the time to print one"
    )
