"""What the ranks of small lives run, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from sglang_cdsp.protocol.lives import this_life

FOR_EVER_S = 600.0


def live(writer: Any, facts: dict[str, Any]) -> None:
    """Say that all is well, and go on."""
    life = this_life()
    mine = {"seat": life.seat, "incarnation": life.incarnation, "slots": life.slots}
    writer.send({**facts, **mine, "pid": os.getpid()})
    time.sleep(FOR_EVER_S)


def leave(writer: Any, code: int) -> None:
    """End before saying anything."""
    os._exit(code)


def be_killed(writer: Any) -> None:
    """Die in the start."""
    os.kill(os.getpid(), signal.SIGKILL)


def raise_an_error(writer: Any) -> None:
    """End as Python ends."""
    raise RuntimeError("for a test")


def start_others(writer: Any) -> None:
    """Start a process that outlives its parent, in a session of its own."""
    command = [sys.executable, "-c", f"import time; time.sleep({FOR_EVER_S})"]
    other = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    writer.send({"pid": os.getpid(), "other": other.pid})
    time.sleep(FOR_EVER_S)


def complain(writer: Any) -> None:
    """Do what SGLang's schedulers do when their loop raises, and hang."""
    writer.send({"pid": os.getpid(), "blocked": signal.SIGQUIT in _blocked()})
    os.kill(os.getppid(), signal.SIGQUIT)
    time.sleep(FOR_EVER_S)


def _blocked() -> set[signal.Signals]:
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


Target = Callable[..., Any]
