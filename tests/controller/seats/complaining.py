"""A small pool whose seat 1 sends SIGQUIT to this process: ``python -m`` this module."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from sglang_cdsp.controller.seats.launcher import Ended, Failing, LifeEvent, Started
from sglang_cdsp.controller.seats.local import WRITER, LocalLauncher, Rank
from sglang_cdsp.controller.seats.signals import Complaints
from sglang_cdsp.controller.seats.states import Cause
from tests.controller.seats import small_ranks


def main() -> None:
    """Print what is told, word by word."""
    complaints = Complaints()
    strangers: list[int] = []
    ranks = {
        0: (Rank(small_ranks.live, (WRITER, {})),),
        1: (Rank(small_ranks.complain, (WRITER,)),),
    }
    launcher = LocalLauncher(
        f"complaining-{os.getpid()}",
        lambda seat, incarnation: lambda: ranks[seat],
        complaints=complaints.take,
        stranger=strangers.append,
    )
    for seat in ranks:
        launcher.start(seat, 1, None)
    seen: list[LifeEvent] = []

    def until(kind: type[LifeEvent], seat: int) -> Any:
        while not (found := [e for e in seen if isinstance(e, kind) and e.seat == seat]):
            seen.extend(launcher.poll())
            time.sleep(0.01)
        return found[0]

    failing = until(Failing, 1)
    print("complained" if failing.cause is Cause.COMPLAINED else failing, failing.seat)
    print("blocked" if until(Started, 1).facts["blocked"] else "open")
    launcher.end(1)
    until(Ended, 1)
    print("ended")
    os.kill(os.getpid(), signal.SIGQUIT)
    while not strangers:
        seen.extend(launcher.poll())
        time.sleep(0.01)
    print("stranger" if strangers == [os.getpid()] else strangers)
    launcher.end(0)
    until(Ended, 0)


if __name__ == "__main__":
    main()
