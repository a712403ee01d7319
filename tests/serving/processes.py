"""The processes of a real server, by what they are, and what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psutil

from sglang_cdsp.stack.processes import ServerProcess

ENOUGH_S = 60.0


def until(reached: Callable[[], object], timeout_s: float = ENOUGH_S) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def controller_of(server: ServerProcess) -> psutil.Process:
    """The pool controller of a prefill server."""
    (found,) = [
        process
        for process in psutil.Process(server.pid).children()
        if "data_parallel_controller" in " ".join(process.cmdline())
    ]
    return found


def family_of(server: ServerProcess) -> list[psutil.Process]:
    """All processes of a server."""
    first = psutil.Process(server.pid)
    return [first, *first.children(recursive=True)]


def left_of(processes: Iterable[psutil.Process], timeout_s: float = ENOUGH_S) -> list[str]:
    """What still runs of some processes when the time is over; zombies have ended."""

    def running() -> list[str]:
        found = []
        for process in processes:
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return found

    until(lambda: not running(), timeout_s)
    return running()
