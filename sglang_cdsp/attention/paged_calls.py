"""Which calls of a paged attention kernel a member's own part takes, and what each call sees.

The rows that a member holds are numbered as in its block: history first, then its part of the
chunk, ascending. Queries always see a prefix of them, so all calls share one list of slots. A page
is one slot, as in SGLang's own use of these kernels: then any order of slots will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.ring_layout import Visible

MOST_CALLS = 256
"""Calls of one list at most: each keeps a plan of some hundred kilobytes for the whole forward.

Tiles are made larger instead. It takes more than a hundred thousand queries on a million keys.
"""

PAGE = 1
"""Slots of a page."""


@dataclass(frozen=True)
class Call:
    """One call of the kernel: some query rows, and which of the rows held each of them sees.

    Attributes:
        sequences: consecutive query rows; those of one entry see the same prefix.
        causal: of an entry the last row sees all its keys, each row before it one fewer.
    """

    sequences: tuple[Visible, ...]
    causal: bool

    @property
    def rows(self) -> slice:
        """The query rows."""
        return slice(self.sequences[0].first, self.sequences[-1].last)

    @property
    def query_ends(self) -> list[int]:
        """Where each sequence's rows end, counted from the call's first row, behind a zero."""
        return [0, *(sequence.last - self.rows.start for sequence in self.sequences)]

    @property
    def key_ends(self) -> list[int]:
        """Where each sequence's keys end in ``slots``, behind a zero."""
        return list(accumulate((sequence.keys for sequence in self.sequences), initial=0))

    def slots(self, held: torch.Tensor) -> torch.Tensor:
        """The slots of all keys, sequence by sequence.

        Args:
            held: slots of the rows held, ``[rows]``; returned as it is where one prefix will do.
        """
        if len(self.sequences) == 1:
            return held[: self.sequences[0].keys]
        return torch.cat([held[: sequence.keys] for sequence in self.sequences])


def own_calls(history: int, chunk: int, pacing: Pacing, flops: float) -> tuple[Call, ...]:
    """The calls of a member's own queries, tile by tile.

    Args:
        history, chunk: rows held of each; query row i sees the history and the chunk's rows to i.
        pacing: cuts the tiles.
        flops: operations for one query row and one key row.
    """
    tiles = _tiles(pacing, chunk, history + chunk, flops, causal=True)
    return tuple(Call((Visible(first, last, history + last),), True) for first, last in tiles)


def guest_calls(parts: Sequence[Visible], pacing: Pacing, flops: float) -> tuple[Call, ...]:
    """The calls of another member's queries, tile by tile.

    Args:
        parts: what they see of the rows held: entries that ascend and leave no gap, as of
            ``RingLayout.visible``.
        pacing: cuts the tiles.
        flops: operations for one query row and one key row.
    """
    if not parts:
        return ()
    start, rows = parts[0].first, parts[-1].last - parts[0].first
    tiles = _tiles(pacing, rows, max(part.keys for part in parts), flops, causal=False)
    return tuple(Call(_within(parts, start + first, start + last), False) for first, last in tiles)


def _within(parts: Sequence[Visible], first: int, last: int) -> tuple[Visible, ...]:
    cut = (Visible(max(part.first, first), min(part.last, last), part.keys) for part in parts)
    return tuple(part for part in cut if part.first < part.last)


def _tiles(
    pacing: Pacing, rows: int, keys: int, flops: float, *, causal: bool
) -> list[tuple[int, int]]:
    if not rows:
        return []
    tiles = list(pacing.tiles(rows, keys, flops, causal=causal))
    while len(tiles) > MOST_CALLS and pacing.tile_flops is not None:
        pacing = replace(pacing, tile_flops=2 * pacing.tile_flops)
        tiles = list(pacing.tiles(rows, keys, flops, causal=causal))
    return tiles
