"""The pool controller's heartbeat, in memory that it shares with the launching process.

The memory is an anonymous file of the launching process, found by way of ``/proc``: it has no name
that could be left behind.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

ENV_VAR = "SGLANG_CDSP_HEARTBEAT"
"""Environment variable with the path of the memory, for the processes of one server."""

_PID, _BEATS, _EXCUSED_NS, _WORDS = 0, 1, 2, 3
_WORD_BYTES = 8
LONGEST_STOP_S = 86_400.0


class Heartbeat:
    """A process id, a count of turns of its loop, and until when that process may stand still.

    The controller writes the first two, the launching process the third. Times are monotonic; the
    processes of a machine have that clock in common.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        """Map the memory that an open file has; ``path`` is how other processes find it."""
        self.path = path
        memory = mmap.mmap(descriptor, _WORDS * _WORD_BYTES)
        self._words = memoryview(memory).cast("q")

    @classmethod
    def create(cls) -> Heartbeat:
        """Make the memory; it lasts as long as this process or one that has opened it."""
        descriptor = os.memfd_create("cdsp-heartbeat")
        os.ftruncate(descriptor, _WORDS * _WORD_BYTES)
        return cls(descriptor, Path(f"/proc/{os.getpid()}/fd/{descriptor}"))

    def publish(self) -> None:
        """Leave the path in the environment of processes spawned from here."""
        os.environ[ENV_VAR] = str(self.path)

    @classmethod
    def opened(cls) -> Heartbeat:
        """Open what the launching process has published.

        Raises:
            RuntimeError: outside a server that was started with ``--cdsp``.
        """
        path = os.environ.get(ENV_VAR)
        if path is None:
            raise RuntimeError("no launching process watches this one; start a server with --cdsp")
        descriptor = os.open(path, os.O_RDWR)
        try:
            return cls(descriptor, Path(path))
        finally:
            os.close(descriptor)

    # -- the controller -------------------------------------------------------------------

    def beat(self) -> None:
        """Another turn of this process's loop has begun."""
        if not self._words[_BEATS]:
            self._words[_PID] = os.getpid()
        self._words[_BEATS] += 1

    # -- the launching process ------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process that beats; 0 before its first beat."""
        return int(self._words[_PID])

    @property
    def beats(self) -> int:
        """How many turns its loop has begun."""
        return int(self._words[_BEATS])

    def excuse(self, seconds: float) -> None:
        """The controller may stand still for so long from now on; 0 takes that back.

        Raises:
            ValueError: no number of seconds up to a day.
        """
        if not 0 <= seconds <= LONGEST_STOP_S:
            raise ValueError(f"a stop may last 0 to {LONGEST_STOP_S:.0f} seconds, not {seconds:g}")
        self._words[_EXCUSED_NS] = time.monotonic_ns() + round(seconds * 1e9) if seconds else 0

    @property
    def excused_until_s(self) -> float:
        """Until when it may stand still, monotonic seconds; in the past if nobody said so."""
        return self._words[_EXCUSED_NS] / 1e9
