"""Ranks of one instance, each in a thread of its own, that bring together what they have."""

from __future__ import annotations

import threading

import torch

from sglang_cdsp.parallel.ranks import Ranks


class Joint:
    """Gathers among the ranks of one instance."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._parts: list[torch.Tensor | None] = [None] * size

    def of(self, rank: int) -> Ranks:
        """The ranks as one of them sees them."""

        def gather(tensor: torch.Tensor) -> torch.Tensor:
            self._parts[rank] = tensor
            self._barrier.wait(20)
            parts = [part for part in self._parts if part is not None]
            assert len({part.numel() for part in parts}) == 1, "ranks gather as many numbers each"
            whole = torch.cat(parts)
            self._barrier.wait(20)
            return whole

        return Ranks(rank, self.size, gather)
