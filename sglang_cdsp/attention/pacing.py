"""Where a layer's attention lets others run: between ring steps, and between tiles of a block."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from sglang_cdsp.parallel.links.types import GiveWay

_LEAST_ROWS = 16
"""Rows of a tile at least: with fewer a kernel does little but start."""

_KERNEL_ROWS = 1024
"""Rows of a tile that sees some of its keys, if it has so many: a kernel reads keys once for many.

On two cores that share a cache, 8,000 causal rows took 16 % longer in tiles of 1.5e9 operations
that saw all their keys than in one piece, and 7 % longer so. torch's CPU kernel reads the keys
anew for every 64 rows, and from 768 rows on for every 256.
"""

_SLEEP_S = 5e-5


@dataclass(frozen=True)
class Tile:
    """Some rows of a block's queries, and the keys that they see at once.

    Attributes:
        rows, keys: which.
        causal: row i of them sees keys 0 to i of them; else each row sees all.
    """

    rows: slice
    keys: slice
    causal: bool = False


@dataclass(frozen=True)
class Pacing:
    """How long attention runs before others may.

    Attributes:
        give_way: called with None at each boundary; None for nobody.
        tile_flops: floating-point operations of a tile at most (as far as 16 rows are no more);
            None runs each block as one. Ranks of one instance need the same value.
    """

    give_way: GiveWay | None = None
    tile_flops: float | None = None

    def boundary(self) -> None:
        """Let others run."""
        if self.give_way is not None:
            self.give_way(None)

    def until(self, ready: Callable[[], bool]) -> None:
        """Let others run until something is ready."""
        while True:
            # Called although it may be ready: tensor-parallel ranks switch at the same points.
            if self.give_way is not None:
                self.give_way(ready)
            if ready():
                return
            if self.give_way is None:
                time.sleep(_SLEEP_S)

    def tiles(
        self, rows: int, keys: int, flops: float, *, causal: bool, least: int = _LEAST_ROWS
    ) -> Iterator[tuple[int, int]]:
        """Cut the query rows of a block into tiles ``[first, last)`` that see all their keys.

        Args:
            rows: query rows.
            keys: key rows; of a causal block the last row sees all, each row before it one fewer.
            flops: operations for one row and one key.
            least: rows of a tile at least, however many keys there are.
        """
        if self.tile_flops is None:
            yield 0, rows
            return
        pairs = self.tile_flops / flops
        first = 0
        while first < rows:
            last = first + pairs / keys
            if causal:
                # A tile [a, b) costs about (b - a) * (before + b).
                before = keys - rows
                last = (first - before + math.sqrt((first + before) ** 2 + 4 * pairs)) / 2
            following = min(rows, max(int(min(last, rows)), first + least))
            yield first, following
            first = following

    def pieces(self, rows: int, keys: int, flops: float, *, causal: bool) -> Iterator[Tile]:
        """Cut a block into tiles of many rows, whose keys are cut instead where they are many.

        Each row's keys come in one order, whatever the tiles.

        Args:
            rows: query rows, at least one.
            keys: key rows, at least one; of a causal block as many as query rows.
            flops: operations for one row and one key.
        """
        if self.tile_flops is None:
            yield Tile(slice(0, rows), slice(0, keys), causal)
            return
        pairs = self.tile_flops / flops
        # No more rows than a tile has with as many keys.
        least = max(_LEAST_ROWS, min(_KERNEL_ROWS, int(math.sqrt(pairs))))
        for first, last in self.tiles(rows, keys, flops, causal=causal, least=least):
            yield from _by_keys(slice(first, last), first if causal else keys, pairs)
            if causal:
                yield Tile(slice(first, last), slice(first, last), causal=True)


def _by_keys(rows: slice, keys: int, pairs: float) -> Iterator[Tile]:
    """Rows that see ``keys`` from 0 on, in equal parts of ``pairs`` or a little more each."""
    parts = math.ceil(keys * (rows.stop - rows.start) / pairs)
    borders = [keys * part // parts for part in range(parts + 1)] if parts else []
    for first, last in pairwise(borders):
        if last > first:
            yield Tile(rows, slice(first, last))


UNPACED = Pacing()
