"""How far the ranks of a pool have come, in memory that all of its processes share.

A chunk's forward answers nobody while it runs. What tells a pool that works from one that is stuck
is whether its ranks still come to their next layer. What tells a rank that is slow from one that
is no more is whether a thread of its own still counts.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_COUNTER = struct.Struct("=q")


class ProgressBoard:
    """Two counters a rank, of layers and of beats.

    Each is written by its rank alone, life after life, and read by the controller.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        """Open the board at ``path``, which has the counters of ``ranks``."""
        self.path = path
        self._ranks = ranks
        with path.open("r+b") as file:
            self._counters = mmap.mmap(file.fileno(), 2 * ranks * _COUNTER.size)

    @classmethod
    def create(cls, ranks: int) -> ProgressBoard:
        """Make a board of zeros, which this process's children can open while it lives.

        It is an anonymous file, so nothing is left behind however the processes end.
        """
        descriptor = os.memfd_create("cdsp-progress")
        os.ftruncate(descriptor, 2 * ranks * _COUNTER.size)
        return cls(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), ranks)

    def advance(self, rank: int) -> None:
        """A rank has come to its next layer, or to its next batch."""
        self._count(rank)

    def beat(self, rank: int) -> None:
        """A rank's thread that counts runs."""
        self._count(self._ranks + rank)

    def read(self) -> tuple[int, ...]:
        """The counters of layers, by rank."""
        return self._read(0)

    def beats(self) -> tuple[int, ...]:
        """The counters of beats, by rank."""
        return self._read(self._ranks)

    def _count(self, index: int) -> None:
        offset = index * _COUNTER.size
        (count,) = _COUNTER.unpack_from(self._counters, offset)
        _COUNTER.pack_into(self._counters, offset, count + 1)

    def _read(self, first: int) -> tuple[int, ...]:
        return struct.unpack_from(f"={self._ranks}q", self._counters, first * _COUNTER.size)
