"""Cells of the first start: servers of their own, whose seat dies before it has ever been up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from bench.servers.chaos.run import Say, environment
from bench.servers.chaos.seats import seats_of, status_of
from bench.servers.matrix.cells import Cell, Result
from bench.servers.matrix.trial import PAUSE_S, VICTIM
from sglang_cdsp.engine.fault_orders import FaultFolder, FaultOrder
from sglang_cdsp.stack.processes import Command, ServerFailedError, ServerGroup, ServerProcess
from sglang_cdsp.testing.stack import prefill_only

INSTANCES = 2
ENDS_WITHIN_S = 120.0
"""A server whose start has failed is to have ended by then, or to serve all the same."""

LEFT_AFTER_S = 5.0
"""When nothing of such a server may be left."""


def run_start(cell: Cell, checkpoint: Path, scratch: Path, say: Say) -> Result:
    """Start a pool of two whose second seat dies while it starts; they end before this returns."""
    folder = FaultFolder(scratch / "faults")
    way = "stop" if cell.way == "pause" else cell.way
    folder.give("first", FaultOrder(way, VICTIM, "start", cell.tp - 1, incarnation=1))
    flags = ("--cdsp", "--dp-size", str(INSTANCES), "--tp-size", str(cell.tp))
    deployment = prefill_only(checkpoint, flags=flags)
    (command,) = deployment.commands
    with environment(folder.path), ServerGroup(say) as group:
        server = group.start(command, scratch / "prefill.log")
        return _watched(cell, folder, server, command)


def _watched(cell: Cell, folder: FaultFolder, server: ServerProcess, command: Command) -> Result:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while (fired := folder.fired("first")) is None:
        if time.monotonic() > deadline or not server.running():
            return Result(cell, wrong=("the fault's moment did not come",), said=_last(server))
        time.sleep(0.05)
    if cell.way == "pause":
        time.sleep(PAUSE_S)
        _continue(fired.pid)
    deadline = time.monotonic() + ENDS_WITHIN_S
    while time.monotonic() < deadline:
        after_s = time.time() - fired.at_unix_s
        try:
            if server.healthy():
                url = command.health_url.removesuffix("/health")
                up = all(seat.state == "up" for seat in seats_of(status_of(url)))
                if up:
                    return Result(cell, back_s=after_s, said="serves")
        except ServerFailedError:
            left = _left(server)
            wrong = (f"processes {left} are left",) if left else ()
            return Result(cell, error_s=after_s, wrong=wrong, said=f"ends: {_last(server)}")
        time.sleep(0.2)
    wrong = (f"neither serves nor has ended {ENDS_WITHIN_S:.0f} s after the fault",)
    return Result(cell, wrong=wrong, said=_last(server))


def _left(server: ServerProcess) -> list[int]:
    """Its processes that have not ended a while after the first one: the kernel tells them."""
    deadline = time.monotonic() + LEFT_AFTER_S
    while (left := server.members()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _last(server: ServerProcess) -> str:
    lines = [line for line in server.log_tail().splitlines() if line.strip()]
    return lines[-1][-200:].replace("|", "/") if lines else ""
