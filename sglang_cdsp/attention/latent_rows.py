"""Latent rows of multi-head latent attention, in the two forms in which attention can read them.

A token's row in SGLang's pool is its normalised latent (``rank`` numbers) and the rotated part of
its key that all heads share (``rope``); see DeepSeek-V2 (arXiv 2405.04434, section 2.1). It travels
as it is, once, whichever rank of an instance carries it. Attention reads it

- *absorbed*: queries have been multiplied by W_UK, so the row is its own key and the latent its
  value, for all heads; whoever gets the output applies W_UV;
- *expanded*: into keys and values of every head, as W_UK and W_UV have them. A pair of query and
  key costs less than a third, but every row is expanded at every member that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sglang_cdsp.attention.answers import Answer
from sglang_cdsp.attention.blocks import RowShape, answer_of, see
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.ring_layout import RingLayout, Visible
from sglang_cdsp.parallel.ranks import ALONE, Ranks

EXPANDED_AT_ONCE = 4096
"""Rows that are expanded at once: at 128 heads of 192 and 128 numbers some 0.6 GB in bfloat16."""

Expand = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Latents ``[T, rank]`` to the heads' own part of K ``[T, H, nope]`` and V ``[T, H, Dv]``."""


@dataclass(frozen=True)
class LatentSizes:
    """Sizes of latent attention on one rank.

    Attributes:
        heads: query heads of this rank.
        rank: of the latent.
        rope: of the part of a key that all heads share.
        nope: of the part of a key that a head has for itself.
        value: of a head's value.
    """

    heads: int
    rank: int
    rope: int
    nope: int
    value: int

    @property
    def row(self) -> int:
        """Numbers of a row."""
        return self.rank + self.rope

    @property
    def query(self) -> dict[bool, int]:
        """Numbers of a query and of its output together for one head, by whether it is expanded."""
        return {False: self.row + self.rank, True: self.nope + self.rope + self.value}


@dataclass(frozen=True)
class AbsorbedRows:
    """Rows read as they are, see ``RowShape``: one key head, whose values are part of the keys.

    Attributes:
        sizes: of the rows.
        ranks: of the instance. All of them hold these rows, so each sends and receives its share.
    """

    sizes: LatentSizes
    ranks: Ranks = ALONE

    tile = None

    def sent(self, rows: torch.Tensor) -> torch.Tensor:
        """What of whole rows ``[n * row]`` travels on this rank's links; a view, contiguous."""
        by_row = rows.view(-1, self.sizes.row)
        return by_row[self.ranks.share(by_row.shape[0])].view(-1)

    def whole(self, message: torch.Tensor, rows: int) -> torch.Tensor:
        """See ``RowShape``."""
        return self.ranks.whole(message.view(-1, self.sizes.row), rows).view(-1)

    @property
    def value_dim(self) -> int:
        """See ``RowShape``."""
        return self.sizes.rank

    def empty(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """See ``RowShape``."""
        share = self.ranks.share(rows)
        return like.new_empty((share.stop - share.start) * self.sizes.row)

    def read(
        self, message: torch.Tensor, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``RowShape``; both are views."""
        rows = message.view(-1, 1, self.sizes.row)[first:last]
        return rows, rows[..., : self.sizes.rank]

    def stored(self, message: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See ``RowShape``."""
        return (message.view(-1, 1, self.sizes.row),)


def _never(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("rows are expanded by their layer")


@dataclass(frozen=True)
class ExpandedRows(AbsorbedRows):
    """Rows read as keys and values of all heads, see ``RowShape``.

    Attributes:
        expand: the layer's.
    """

    expand: Expand = _never

    tile = EXPANDED_AT_ONCE  # type: ignore[assignment]

    @property
    def made(self) -> int:
        """Numbers that one tile makes: latents, what they expand to, and keys with both parts."""
        sizes = self.sizes
        expanded = sizes.heads * (2 * sizes.nope + sizes.rope + sizes.value)
        return EXPANDED_AT_ONCE * (sizes.rank + expanded)

    @property
    def value_dim(self) -> int:
        """See ``RowShape``."""
        return self.sizes.value

    def read(
        self, message: torch.Tensor, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``RowShape``; both are new."""
        rows = message.view(-1, self.sizes.row)[first:last]
        own, values = self.expand(rows[:, : self.sizes.rank].contiguous())
        shared = rows[:, None, self.sizes.rank :].expand(-1, own.shape[1], -1)
        return torch.cat((own, shared), dim=-1), values


class LatentBlock:
    """A member's block of one layer in the pool of latent rows; see ``Block``."""

    def __init__(
        self,
        rows: torch.Tensor,
        slots: torch.Tensor,
        history_rows: int,
        shape: AbsorbedRows,
        own: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Look at a layer's pool.

        Args:
            rows: the pool, ``[slots, 1, row]``.
            slots: of the block's rows, int64 ``[history and chunk]``, history first.
            history_rows: how many of them are history.
            shape: how they are read.
            own: K and V of the chunk's rows in the same form, where the model has made them.
        """
        self._rows, self._slots, self._history = rows, slots, history_rows
        self._shape = shape
        self._own = own
        self._copy: torch.Tensor | None = None

    @property
    def shape(self) -> RowShape:
        """See ``Block``."""
        return self._shape

    @property
    def history_rows(self) -> int:
        """See ``Block``."""
        return self._history

    @property
    def chunk_rows(self) -> int:
        """See ``Block``."""
        return self._slots.numel() - self._history

    def message(self) -> torch.Tensor:
        """See ``Block``."""
        return self._shape.sent(self._all())

    def attend_own(self, state: RunningState) -> None:
        """See ``Block``."""
        queries, past = self.chunk_rows, self._history
        if past:
            see(state, self._shape, self._held(past), [Visible(0, queries, past)])
        if queries:
            own = self._own
            if own is None:
                own = self._shape.read(self._all(), past, past + queries)
            state.attend(*own, causal=True)

    def serve(
        self, guest: torch.Tensor, parts: tuple[Visible, ...], scale: float, pacing: Pacing
    ) -> Answer:
        """See ``Block``."""

        def attend(state: RunningState) -> None:
            see(state, self._shape, self._all(), parts)

        return answer_of(guest, self._shape.value_dim, scale, pacing, attend)

    def _all(self) -> torch.Tensor:
        """All rows ``[n * row]``, copied together once."""
        if self._copy is None:
            self._copy = self._rows.index_select(0, self._slots).view(-1)
        return self._copy

    def _held(self, rows: int) -> torch.Tensor:
        """The first rows, copied together unless all of them are already."""
        if self._copy is not None:
            return self._copy
        return self._rows.index_select(0, self._slots[:rows]).view(-1)


def expanded_is_cheaper(layout: RingLayout, sizes: LatentSizes) -> bool:
    """Whether a chunk's attention takes fewer operations expanded; the same at all members.

    A pair of query and key costs ``2 (rank + rope + rank)`` operations a head absorbed and
    ``2 (nope + rope + value)`` expanded; a row that is not the member's own costs
    ``2 rank (nope + value)`` a head to expand. In DeepSeek-V3's sizes that pays from 171 queries a
    row on. Counted for all members together.
    """
    members = range(layout.size)
    queries = [layout.chunk_tokens(member) for member in members]
    pairs = rows = 0
    for member in members:
        own = layout.history_tokens[member]
        rows += own
        pairs += queries[member] * own
        for holder in members:
            if holder != member and (parts := layout.visible(member, holder)):
                rows += max(part.keys for part in parts)
                pairs += sum((part.last - part.first) * part.keys for part in parts)
    saved = sizes.query[False] - sizes.query[True]
    return pairs * saved >= rows * sizes.rank * (sizes.nope + sizes.value)
