"""SIGQUIT from schedulers, with the sender.

SGLang's schedulers send SIGQUIT to their parent when their loop raises, and when their watchdog
finds them stuck. By default that would end the controller, and the server with it.
"""

from __future__ import annotations

import queue
import signal
import threading
from typing import NoReturn

FROM_KERNEL = 0
"""The sender of a signal that a terminal sends."""
UNKNOWN = -1
"""The sender where it cannot be known: a thread of a library took the signal."""


class Complaints:
    """Takes this process's SIGQUITs and remembers who sent them.

    The signal is blocked in every thread that is started from now on; one thread waits for it.
    Threads of libraries that run already leave it open: what reaches one of those is taken too,
    without the sender.
    """

    def __init__(self) -> None:
        """To be called in the main thread, before it starts others."""
        self._senders: queue.SimpleQueue[int] = queue.SimpleQueue()
        signal.signal(signal.SIGQUIT, lambda *_: self._senders.put(UNKNOWN))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT})
        threading.Thread(target=self._wait, daemon=True, name="cdsp-sigquit").start()

    def _wait(self) -> NoReturn:
        while True:
            self._senders.put(signal.sigwaitinfo({signal.SIGQUIT}).si_pid)

    def take(self) -> list[int]:
        """Process ids of the senders since the last call, ``FROM_KERNEL`` or ``UNKNOWN``."""
        found: list[int] = []
        while True:
            try:
                found.append(self._senders.get_nowait())
            except queue.Empty:
                return found


def unblock() -> None:
    """Undo what a child inherits of it: SIGQUIT is a scheduler's own matter there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGQUIT})
