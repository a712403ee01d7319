"""Checks of step 4: how far the host runs ahead of the device, and times by device events."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from bench.gpu.record import CheckFailed
from bench.gpu.target import Target, milliseconds
from sglang_cdsp.engine.device import PIECES_AHEAD, Pace, Ready, Stopwatch, events_of

PIECES = 24
APART = 0.2
"""What the stopwatch may be off from a plain measurement, as a share of it."""


def pace_bound(target: Target) -> dict[str, float]:
    """Launch pieces under ``Pace``; no more than two may ever be ahead of the device.

    Raises:
        CheckFailed: more were.
    """
    work, launched, most = _piece(target), list[torch.cuda.Event](), 0
    waited = 0

    def give_way(ready: Ready | None) -> None:
        nonlocal waited
        while ready is not None and not ready():
            waited += 1
            time.sleep(5e-5)

    pace = Pace(give_way, events_of(target.device.type))
    began = time.perf_counter()
    for _ in range(PIECES):
        pace()
        work()
        if target.cuda:
            end = torch.cuda.Event()
            end.record()
            launched.append(end)
            most = max(most, sum(not event.query() for event in launched))
    target.synchronize()
    paced_ms = 1e3 * (time.perf_counter() - began)
    if most > PIECES_AHEAD:
        raise CheckFailed(f"{most} pieces were ahead of the device, not {PIECES_AHEAD}")
    alone_ms = milliseconds(target, lambda: [work() for _ in range(PIECES)], repeats=3)
    return {"most ahead": most, "paced over plain": paced_ms / alone_ms, "polls": waited}


def stopwatch(target: Target) -> dict[str, float]:
    """A piece's time by ``Stopwatch`` beside a plain measurement.

    Raises:
        CheckFailed: they are further apart than ``APART``.
    """
    work = _piece(target)
    plain_ms = milliseconds(target, work)
    events = events_of(target.device.type)
    if events is None:
        return {"plain ms": plain_ms}

    def give_way(ready: Ready | None) -> None:
        while ready is not None and not ready():
            time.sleep(5e-5)

    found = []
    for _ in range(5):
        target.synchronize()
        watch = Stopwatch(events)
        work()
        end_s: list[float] = []

        def clock(kept: list[float] = end_s) -> float:
            kept.append(time.monotonic())
            return kept[-1]

        start_s = watch.stop(give_way, clock)
        found.append(1e3 * (end_s[-1] - start_s))
    measured_ms = sorted(found)[2]
    if abs(measured_ms - plain_ms) > APART * plain_ms:
        raise CheckFailed(f"{measured_ms:.3f} ms by events, {plain_ms:.3f} ms plain")
    return {"plain ms": plain_ms, "by events ms": measured_ms}


def _piece(target: Target) -> Callable[[], object]:
    """Some milliseconds of work on a GPU."""
    size = 256 if target.small else 8192
    left, right = target.randn(size, size, seed=1), target.randn(size, size, seed=2)
    return lambda: left @ right
