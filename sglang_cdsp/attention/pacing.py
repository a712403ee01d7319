"""Where a layer's attention lets others run: between ring steps, and between tiles of a block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sglang_cdsp.parallel.links.types import GiveWay

_LEAST_ROWS = 16
"""Rows of a tile at least: with fewer a kernel does little but start."""


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

    def tiles(
        self, rows: int, keys: int, flops: float, *, causal: bool
    ) -> Iterator[tuple[int, int]]:
        """Cut the query rows of a block into tiles ``[first, last)``.

        Args:
            rows: query rows.
            keys: key rows; of a causal block row i sees the first i + 1 alone.
            flops: operations for one row and one key.
        """
        if self.tile_flops is None:
            yield 0, rows
            return
        pairs = self.tile_flops / flops
        first = 0
        while first < rows:
            # A causal tile [a, b) costs about (b - a) * b.
            last = (first + math.sqrt(first**2 + 4 * pairs)) / 2 if causal else first + pairs / keys
            following = min(rows, max(int(min(last, rows)), first + _LEAST_ROWS))
            yield first, following
            first = following


UNPACED = Pacing()
