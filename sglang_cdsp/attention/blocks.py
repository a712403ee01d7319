"""One member's keys and values as one flat message."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.links.types import Exchanger


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

    def views(self, message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return K ``[rows, H, D]`` and V ``[rows, H, Dv]`` as views of ``message``."""
        rows = message.numel() // self.row
        border = rows * self.heads * self.key_dim
        return (
            message[:border].view(rows, self.heads, self.key_dim),
            message[border:].view(rows, self.heads, self.value_dim),
        )


def pack_block(
    k: torch.Tensor, v: torch.Tensor, k_history: torch.Tensor, v_history: torch.Tensor
) -> torch.Tensor:
    """Copy history rows, then chunk rows, into one flat message of K and V."""
    shape = BlockShape.of(k, v)
    message = shape.empty(k_history.shape[0] + k.shape[0], k)
    keys, values = shape.views(message)
    torch.cat((k_history, k), out=keys)
    torch.cat((v_history, v), out=values)
    return message


def check_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_history: torch.Tensor,
    v_history: torch.Tensor,
    layout: RingLayout,
    links: Exchanger | None,
) -> None:
    """Raise ``AttentionError`` unless the tensors have the rows that the layout says."""
    chunk, history = layout.own_tokens, layout.history_tokens[layout.me]
    if not q.shape[0] == k.shape[0] == v.shape[0] == chunk:
        raise AttentionError(
            f"member {layout.me} computes {chunk} tokens of this chunk, but q, k and v have "
            f"{q.shape[0]}, {k.shape[0]} and {v.shape[0]} rows: pass exactly its spans"
        )
    if not k_history.shape[0] == v_history.shape[0] == history:
        raise AttentionError(
            f"member {layout.me} holds {history} tokens of history, but k_history and v_history "
            f"have {k_history.shape[0]} and {v_history.shape[0]} rows: pass exactly those"
        )
    if layout.size > 1 and links is None:
        raise AttentionError(f"a group of {layout.size} needs links among its members")
