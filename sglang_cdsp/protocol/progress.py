"""How far the ranks of a pool have come, in memory that all of its processes share.

A chunk's forward answers nobody while it runs. What tells a pool that works from one that is stuck
is whether its ranks still come to their next layer. What tells a rank that is slow from one that
is no more is whether a thread of its own still counts. How far a single chunk has come is kept
apart from both: several may run on an instance at once, beside SGLang's own batches.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_COUNTER = struct.Struct("=q")
_PLACE = struct.Struct("=qq")
CHUNKS = 16
"""Running chunks of a rank whose layers can be told apart."""


class ProgressBoard:
    """Two counters a rank, of layers and of beats, and the layers of each chunk that runs there.

    Each is written by its rank alone, life after life, and read by the controller.
    """

    def __init__(self, path: Path, ranks: int) -> None:
        """Open the board at ``path``, which has the counters of ``ranks``."""
        self.path = path
        self._ranks = ranks
        with path.open("r+b") as file:
            self._counters = mmap.mmap(file.fileno(), _size(ranks))

    @classmethod
    def create(cls, ranks: int) -> ProgressBoard:
        """Make a board of zeros, which this process's children can open while it lives.

        It is an anonymous file, so nothing is left behind however the processes end.
        """
        descriptor = os.memfd_create("cdsp-progress")
        os.ftruncate(descriptor, _size(ranks))
        return cls(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), ranks)

    def advance(self, rank: int) -> None:
        """A rank has come to its next layer, or to its next batch."""
        self._count(rank)

    def beat(self, rank: int) -> None:
        """A rank's thread that counts runs."""
        self._count(self._ranks + rank)

    def begin_layer(self, rank: int, serial: int) -> None:
        """A rank begins the next layer of the chunk that was started as number ``serial``."""
        offset = self._place(rank, serial)
        found, layers = _PLACE.unpack_from(self._counters, offset)
        if found != serial:
            layers = 0
        _PLACE.pack_into(self._counters, offset, serial, layers + 1)

    def layers(self, rank: int, serial: int) -> int:
        """Layers that a rank has begun of a chunk; 0 of one that it has not started.

        Of a chunk that has ended this may be 0 again: its place is another one's.
        """
        found, layers = _PLACE.unpack_from(self._counters, self._place(rank, serial))
        return layers if found == serial else 0

    def read(self) -> tuple[int, ...]:
        """The counters of layers, by rank."""
        return self._read(0)

    def beats(self) -> tuple[int, ...]:
        """The counters of beats, by rank."""
        return self._read(self._ranks)

    def _place(self, rank: int, serial: int) -> int:
        counters = 2 * self._ranks * _COUNTER.size
        return counters + (rank * CHUNKS + serial % CHUNKS) * _PLACE.size

    def _count(self, index: int) -> None:
        offset = index * _COUNTER.size
        (count,) = _COUNTER.unpack_from(self._counters, offset)
        _COUNTER.pack_into(self._counters, offset, count + 1)

    def _read(self, first: int) -> tuple[int, ...]:
        return struct.unpack_from(f"={self._ranks}q", self._counters, first * _COUNTER.size)


def _size(ranks: int) -> int:
    """Bytes of a board."""
    return ranks * (2 * _COUNTER.size + CHUNKS * _PLACE.size)
