"""How far the ranks of a pool have come, in memory that all of its processes share.

A chunk's forward answers nobody while it runs. What tells a pool that works from one that is stuck
is whether its ranks still come to their next layer.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from pathlib import Path

_COUNTER = struct.Struct("=q")
_MEMORY = Path("/dev/shm")


class ProgressBoard:
    """One counter a rank; each is written by its rank alone and read by the controller."""

    def __init__(self, path: Path, ranks: int) -> None:
        """Open the board at ``path``, which has a counter for each of ``ranks``."""
        self.path = path
        self._ranks = ranks
        with path.open("r+b") as file:
            self._counters = mmap.mmap(file.fileno(), ranks * _COUNTER.size)

    @classmethod
    def create(cls, ranks: int) -> ProgressBoard:
        """Make a board of zeros, in memory where the system has a place for that."""
        folder = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else None
        descriptor, name = tempfile.mkstemp(prefix="sglang-cdsp-progress-", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(ranks * _COUNTER.size))
        return cls(Path(name), ranks)

    def forget_path(self) -> None:
        """Leave no file behind: who has opened the board keeps it."""
        self.path.unlink(missing_ok=True)

    def advance(self, rank: int) -> None:
        """A rank has come to its next layer, or to its next batch."""
        offset = rank * _COUNTER.size
        (count,) = _COUNTER.unpack_from(self._counters, offset)
        _COUNTER.pack_into(self._counters, offset, count + 1)

    def read(self) -> tuple[int, ...]:
        """The counters, by rank."""
        offsets = range(0, self._ranks * _COUNTER.size, _COUNTER.size)
        return tuple(_COUNTER.unpack_from(self._counters, offset)[0] for offset in offsets)
