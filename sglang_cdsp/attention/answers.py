"""What comes back for queries that were served elsewhere: log-sum-exp and output in one message."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_ALIGNMENT = 16
"""Bytes at a multiple of which the output begins, so that a kernel may write it in place."""


@dataclass(frozen=True)
class Answer:
    """Partial attention of some queries, as it travels.

    Attributes:
        message: all of it, uint8, contiguous: the log-sum-exp, then the output.
        lse: natural log-sum-exp ``[rows, heads]``, float32, a view of ``message``.
        out: output ``[rows, heads, Dv]`` in the dtype of the queries, a view of ``message``.
    """

    message: torch.Tensor
    lse: torch.Tensor
    out: torch.Tensor

    @classmethod
    def empty(cls, rows: int, heads: int, value_dim: int, like: torch.Tensor) -> Answer:
        """Return an unfilled answer, dtype and device as ``like``."""
        border = rows * heads * torch.float32.itemsize
        size = border + rows * heads * value_dim * like.element_size()
        skipped = -border % _ALIGNMENT
        message = torch.empty(skipped + size, dtype=torch.uint8, device=like.device)[skipped:]
        return cls(
            message,
            message[:border].view(torch.float32).view(rows, heads),
            message[border:].view(like.dtype).view(rows, heads, value_dim),
        )
