"""What a member holds of one layer: its block, and its keys and values as one flat message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sglang_cdsp.attention.answers import Answer
from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.ring_layout import RingLayout, Visible
from sglang_cdsp.parallel.links.types import Exchanger


class RowShape(Protocol):
    """What the rows of a block are: how they travel, how attention reads them, how they are kept.

    Attributes:
        value_dim: Dv, of what attention over them gives.
        tile: rows that are read at once at most, where reading makes new tensors; None for all.
    """

    @property
    def value_dim(self) -> int: ...

    @property
    def tile(self) -> int | None: ...

    def empty(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """Return an unfilled message for ``rows`` rows, dtype and device as ``like``."""

    def read(
        self, message: torch.Tensor, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K ``[n, H, D]`` and V ``[n, H, Dv]`` of the rows ``[first, last)``."""

    def whole(self, message: torch.Tensor, rows: int) -> torch.Tensor:
        """Return a block of ``rows`` rows that came, as ``read`` and ``stored`` want it.

        Ranks of one instance may each have brought a part of it.
        """

    def stored(self, message: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all rows as the pool's buffers of a layer have them, buffer by buffer."""


@dataclass(frozen=True)
class BlockShape:
    """How the rows of a block lie in its flat message: all of K, then all of V."""

    heads: int
    key_dim: int
    value_dim: int

    @classmethod
    def of(cls, k: torch.Tensor, v: torch.Tensor) -> BlockShape:
        """Read the shape off ``k`` ``[T, H, D]`` and ``v`` ``[T, H, Dv]``."""
        return cls(k.shape[1], k.shape[2], v.shape[2])

    @property
    def row(self) -> int:
        """Elements in one row of K and V."""
        return self.heads * (self.key_dim + self.value_dim)

    def empty(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """Return an unfilled message for ``rows`` rows, dtype and device as ``like``."""
        return like.new_empty(rows * self.row)

    @property
    def tile(self) -> int | None:
        """See ``RowShape``: reading makes nothing."""
        return None

    def read(
        self, message: torch.Tensor, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``RowShape``."""
        keys, values = self.views(message)
        return keys[first:last], values[first:last]

    def whole(self, message: torch.Tensor, rows: int) -> torch.Tensor:
        """See ``RowShape``: each rank has heads of its own."""
        return message

    def stored(self, message: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See ``RowShape``."""
        return self.views(message)

    def views(self, message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K ``[rows, H, D]`` and V ``[rows, H, Dv]`` as views of ``message``."""
        rows = message.numel() // self.row
        border = rows * self.heads * self.key_dim
        return (
            message[:border].view(rows, self.heads, self.key_dim),
            message[border:].view(rows, self.heads, self.value_dim),
        )


class Block(Protocol):
    """A member's block in one layer: the rows of its history, then those of its part of the chunk.

    Attributes:
        shape: of its rows.
        history_rows, chunk_rows: how many there are of each.
    """

    @property
    def shape(self) -> RowShape: ...

    @property
    def history_rows(self) -> int: ...

    @property
    def chunk_rows(self) -> int: ...

    def message(self) -> torch.Tensor:
        """Return a copy of all rows as one flat message. Called before attention, or not at all."""

    def attend_own(self, state: RunningState) -> None:
        """Let the member's own queries see all history, and the chunk's rows up to their own."""

    def serve(
        self, guest: torch.Tensor, parts: tuple[Visible, ...], scale: float, pacing: Pacing
    ) -> Answer:
        """Attend another member's queries.

        Args:
            guest: ``[rows, Hq, D]``.
            parts: what they see of the block; each row is in one entry.
            scale: factor on the logits.
            pacing: where others may run meanwhile.
        """


@dataclass(frozen=True)
class TensorBlock:
    """A block whose rows lie beside each other, so that any kernel can read them.

    Attributes:
        k, v: ``[T, H, D]`` and ``[T, H, Dv]``, the member's part of the chunk.
        k_history, v_history: the same of its history, rows in any order.

    Raises:
        AttentionError: the rows of K and V differ in number.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_history: torch.Tensor
    v_history: torch.Tensor

    def __post_init__(self) -> None:
        for k, v in ((self.k, self.v), (self.k_history, self.v_history)):
            if k.shape[0] != v.shape[0]:
                raise AttentionError(
                    f"a block has as many keys as values, not {k.shape[0]} and {v.shape[0]} rows"
                )

    @property
    def shape(self) -> BlockShape:
        """See ``Block``."""
        return BlockShape.of(self.k, self.v)

    @property
    def history_rows(self) -> int:
        """See ``Block``."""
        return self.k_history.shape[0]

    @property
    def chunk_rows(self) -> int:
        """See ``Block``."""
        return self.k.shape[0]

    def message(self) -> torch.Tensor:
        """See ``Block``."""
        shape = self.shape
        message = shape.empty(self.history_rows + self.chunk_rows, self.k)
        keys, values = shape.views(message)
        torch.cat((self.k_history, self.k), out=keys)
        torch.cat((self.v_history, self.v), out=values)
        return message

    def attend_own(self, state: RunningState) -> None:
        """See ``Block``."""
        state.attend(self.k_history, self.v_history, causal=False)
        state.attend(self.k, self.v, causal=True)

    def serve(
        self, guest: torch.Tensor, parts: tuple[Visible, ...], scale: float, pacing: Pacing
    ) -> Answer:
        """See ``Block``."""

        def attend(state: RunningState) -> None:
            state.attend(self.k_history, self.v_history, causal=False)
            for part in parts:
                keys = part.keys - self.history_rows
                state.attend(
                    self.k[:keys], self.v[:keys], causal=False, rows=slice(part.first, part.last)
                )

        return answer_of(guest, self.v.shape[2], scale, pacing, attend)


def see(
    state: RunningState, shape: RowShape, message: torch.Tensor, parts: Sequence[Visible]
) -> None:
    """Let the queries of ``state`` see their parts of a block that came as ``message``."""
    if not parts:
        return
    most = max(part.keys for part in parts)
    tile = shape.tile or most
    for first in range(0, most, tile):
        keys, values = shape.read(message, first, min(first + tile, most))
        for part in parts:
            seen = part.keys - first
            if seen > 0:
                rows = slice(part.first, part.last)
                state.attend(keys[:seen], values[:seen], causal=False, rows=rows)


def answer_of(
    guest: torch.Tensor,
    value_dim: int,
    scale: float,
    pacing: Pacing,
    attend: Callable[[RunningState], None],
) -> Answer:
    """Attend another member's queries ``[rows, Hq, D]``; ``attend`` shows them their keys."""
    answer = Answer.empty(guest.shape[0], guest.shape[1], value_dim, guest)
    # In float32 the state is kept in the message itself.
    into = (answer.out, answer.lse) if guest.dtype == torch.float32 else None
    state = RunningState(guest, value_dim, scale, pacing, into)
    attend(state)
    if into is None:
        answer.lse.copy_(state.lse)
        answer.out.copy_(state.out)
    return answer


def check_rows(q: torch.Tensor, block: Block, layout: RingLayout, links: Exchanger | None) -> None:
    """Raise ``AttentionError`` unless queries and block have the rows that the layout says."""
    chunk, history = layout.own_tokens, layout.history_tokens[layout.me]
    if not q.shape[0] == block.chunk_rows == chunk:
        raise AttentionError(
            f"member {layout.me} computes {chunk} tokens of this chunk, but its queries and its "
            f"block have {q.shape[0]} and {block.chunk_rows} rows of it: pass exactly its spans"
        )
    if block.history_rows != history:
        raise AttentionError(
            f"member {layout.me} holds {history} tokens of history, but its block has "
            f"{block.history_rows} rows of it: pass exactly those"
        )
    if layout.size > 1 and links is None:
        raise AttentionError(f"a group of {layout.size} needs links among its members")
