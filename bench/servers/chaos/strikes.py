"""Carries out the events of a scenario on running servers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import requests

from bench.servers.chaos.disk import SmallDisk
from bench.servers.chaos.record import Away, Strike
from bench.servers.chaos.scenario import Event
from bench.servers.chaos.seats import SeatWatch, ranks_of
from sglang_cdsp.engine.fault_orders import WAYS, FaultFolder, FaultOrder
from sglang_cdsp.stack.processes import ServerFailedError
from sglang_cdsp.testing.stack import RunningStack

STATE_WAIT_S = 180.0
"""How long an event waits for its seat's state."""

FIRED_WAIT_S = 60.0
"""How long a fault waits for its moment."""

DECODE_WAIT_S = 300.0
"""How long a decode server may take to start again."""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "continue": signal.SIGCONT}


class Striker:
    """What happens to the servers of one run.

    Attributes:
        decode_is_there: set while a decode server can be asked.
        away: decode's absences so far.
        unlogged: when the plan log's disk was full, as (from, until) on the wall clock.
    """

    def __init__(
        self, stack: RunningStack, watch: SeatWatch, faults: Path, disk: SmallDisk | None
    ) -> None:
        """Make ready.

        Args:
            stack: pool, decode and router.
            watch: looks at the pool's seats.
            faults: the folder that the pool's fault hook looks into.
            disk: where the plan log lies, None where it is not to be filled.
        """
        self._stack = stack
        self._watch = watch
        self._faults = FaultFolder(faults)
        self._disk = disk
        self.decode_is_there = threading.Event()
        self.decode_is_there.set()
        self.away: list[Away] = []
        self.unlogged: list[tuple[float, float]] = []
        self._restarts = threading.Lock()

    def strike(self, event: Event) -> Strike:
        """Carry out an event, and return when that is over; a note says why it was not."""
        if event.kind.seat and "state" in event.kind.fields and event.state != "any":
            assert event.seat is not None
            if not self._watch.wait({event.seat: event.state}, STATE_WAIT_S):
                return Strike(
                    event,
                    time.time(),
                    f"seat {event.seat} was not {event.state} within {STATE_WAIT_S:g} s",
                )
        try:
            if event.do in _SIGNALS and event.moment == "turn":
                return self._signal(event)
            if event.do in WAYS:
                return self._hooked(event)
            if event.do == "full-disk":
                return self._full_disk(event)
            if event.do == "decode-restart":
                with self._restarts:  # the next one waits for a server that it can end
                    return self._decode_restart(event)
            return self._ask(event)
        except (OSError, requests.RequestException, ServerFailedError) as error:
            return Strike(event, time.time(), f"{error!r}"[:300])

    def _signal(self, event: Event) -> Strike:
        assert event.seat is not None
        pid = ranks_of(self._stack.servers["prefill"]).get((event.seat, event.rank))
        if pid is None:
            return Strike(event, time.time(), "there is no such process")
        os.kill(pid, _SIGNALS[event.do])
        at_s = time.time()
        _continue_later(event, pid)
        return Strike(event, at_s)

    def _hooked(self, event: Event) -> Strike:
        assert event.seat is not None
        # The folder keeps the notes of all orders: no name comes twice.
        name = f"{event.do}-{uuid.uuid4().hex}"
        order = FaultOrder(
            event.do,
            event.seat,
            event.moment,
            event.rank,
            delay_s=event.delay_s,
            for_s=event.for_s or 0.0,
        )
        self._faults.give(name, order)
        for _ in _polls(FIRED_WAIT_S):
            fired = self._faults.fired(name)
            if fired is not None:
                _continue_later(event, fired.pid)
                return Strike(event, fired.at_unix_s)
        if not self._faults.withdraw(name):
            return Strike(event, time.time())
        return Strike(event, time.time(), f"nobody came to that moment in {FIRED_WAIT_S:g} s")

    def _full_disk(self, event: Event) -> Strike:
        if self._disk is None:
            return Strike(event, time.time(), "the plan log has no disk of its own")
        at_s = time.time()
        self._disk.fill()
        try:
            time.sleep(event.for_s or 0.0)
        finally:
            self._disk.free()
            self.unlogged.append((at_s, time.time() + 1.0))
        return Strike(event, at_s)

    def _decode_restart(self, event: Event) -> Strike:
        self.decode_is_there.clear()
        server = self._stack.servers["decode"]
        at_s = time.time()
        try:
            for pid in server.members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(event.for_s or 0.0)
            new = self._stack.again("decode")
            if not any(new.healthy() for _ in _polls(DECODE_WAIT_S, every_s=0.5)):
                return Strike(event, at_s, f"decode did not start in {DECODE_WAIT_S:g} s")
        finally:
            self.away.append(Away(at_s, time.time()))
            self.decode_is_there.set()
        return Strike(event, at_s)

    def _ask(self, event: Event) -> Strike:
        body = {"seats": {str(event.seat): event.do}}
        at_s = time.time()
        answer = requests.post(f"{self._stack.urls['prefill']}/cdsp/update", json=body, timeout=30)
        note = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
        return Strike(event, at_s, note)


def _continue_later(event: Event, pid: int) -> None:
    """Wait for the end of a stop that has one, and let the process go on."""
    if event.do == "stop" and event.for_s is not None:
        time.sleep(event.for_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _polls(timeout_s: float, every_s: float = 0.05) -> Iterator[None]:
    """Yields now and then until the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        yield
        time.sleep(every_s)
