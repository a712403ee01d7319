"""A small pool whose seat 1 sends SIGQUIT to this process: ``python -m`` this module."""

from __future__ import annotations

import os
import signal
import time

from sglang_cdsp.controller.seats.launcher import Ended, Failing, Started
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
    ended: set[int] = set()
    blocked: dict[int, bool] = {}
    while 1 not in ended:
        for event in launcher.poll():
            match event:
                case Failing(cause=Cause.COMPLAINED):
                    print("complained", event.seat)
                    while event.seat not in blocked:
                        found = [e for e in launcher.poll() if isinstance(e, Started)]
                        blocked |= {e.seat: e.facts.get("blocked", False) for e in found}
                    print("blocked" if blocked[event.seat] else "open")
                    launcher.end(event.seat)
                case Ended():
                    ended.add(event.seat)
                    print("ended")
                case Started():
                    blocked[event.seat] = event.facts.get("blocked", False)
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGQUIT)
    while not strangers:
        launcher.poll()
        time.sleep(0.01)
    print("stranger" if strangers == [os.getpid()] else strangers)
    launcher.end(0)
    while not any(isinstance(event, Ended) for event in launcher.poll()):
        time.sleep(0.01)


if __name__ == "__main__":
    main()
