"""Where a layer's attention lets others run: between ring steps, and between tiles of a block."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sglang_cdsp.parallel.links.types import GiveWay

_LEAST_ROWS = 16
"""Rows of a tile at least: with fewer a kernel does little but start."""

_SLEEP_S = 5e-5


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
        self, rows: int, keys: int, flops: float, *, causal: bool
    ) -> Iterator[tuple[int, int]]:
        """Cut the query rows of a block into tiles ``[first, last)``.

        Args:
            rows: query rows.
            keys: key rows; of a causal block the last row sees all, each row before it one fewer.
            flops: operations for one row and one key.
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
            following = min(rows, max(int(min(last, rows)), first + _LEAST_ROWS))
            yield first, following
            first = following


UNPACED = Pacing()
