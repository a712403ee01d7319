"""The tensor-parallel ranks of an instance, where all of them hold the same rows.

Each rank has links of its own to the same rank of other instances. Rows that all ranks of an
instance hold alike go over the links once: each rank carries a part of them, and the parts are
brought together inside the instance that gets them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranks:
    """The ranks of one instance, as one of them sees them.

    Attributes:
        rank, size: this one, and how many there are.
        gather: a tensor ``[n]`` of each rank to ``[size * n]``, in the order of ranks. All ranks
            call it, between two switches of coroutines.
    """

    rank: int
    size: int
    gather: Callable[[torch.Tensor], torch.Tensor]

    def share(self, rows: int) -> slice:
        """Which of ``rows`` rows this rank carries: neighbours, as many as the others or fewer."""
        most = self._most(rows)
        return slice(min(self.rank * most, rows), min((self.rank + 1) * most, rows))

    def whole(self, part: torch.Tensor, rows: int) -> torch.Tensor:
        """Bring together what each rank carries of ``rows`` rows. All ranks call it.

        Args:
            part: this rank's share, ``[share, ...]``, contiguous.
            rows: of all ranks together.

        Returns:
            ``[rows, ...]``, contiguous.
        """
        if self.size == 1:
            return part
        lacking = self._most(rows) - part.shape[0]
        if lacking:  # whoever has the last rows; every rank gathers as many
            part = torch.cat((part, part.new_zeros(lacking, *part.shape[1:])))
        return self.gather(part.view(-1)).view(-1, *part.shape[1:])[:rows]

    def _most(self, rows: int) -> int:
        return -(-rows // self.size)


ALONE = Ranks(0, 1, lambda tensor: tensor)
