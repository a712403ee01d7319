"""Watches the schedulers while they start.

SGLang's controller waits for each scheduler to say that it is ready, and for one that has ended it
waits for ever: it keeps the other end of the pipe open itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

LOOK_EVERY_S = 0.2


class Started(Protocol):
    """A process, as ``multiprocessing`` has it."""

    @property
    def pid(self) -> int | None:
        """Its id."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs."""


class LaunchWatch:
    """Calls ``ended`` once, from a thread of its own, if a process ends inside the block."""

    def __init__(
        self, processes: Callable[[], Sequence[Started]], ended: Callable[[Started], None]
    ) -> None:
        """``processes`` gives those that were started so far."""
        self._processes = processes
        self._ended = ended
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="cdsp-launch")

    def __enter__(self) -> LaunchWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            for process in self._processes():
                if process.exitcode is not None:
                    self._ended(process)
                    return
