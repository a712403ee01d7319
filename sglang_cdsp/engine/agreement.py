"""What all tensor-parallel ranks of an instance agree on between two switches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Ranks are in lock-step within a layer; who is this late waits inside a layer for ever.
LATE = timedelta(seconds=60)


class RanksDivergedError(RuntimeError):
    """A rank failed where its partners cannot notice: the instance cannot go on."""


class Agreement:
    """One small message among an instance's ranks, over its CPU process group.

    Attributes:
        size: number of ranks.
    """

    def __init__(self, group: Any, size: int, late: timedelta = LATE) -> None:
        """``group`` is the instance's CPU process group of ``size`` ranks."""
        self._group = group
        self.size = size
        self._late = late

    def least(self, numbers: Sequence[int]) -> list[int]:
        """Return the least of each number over all ranks.

        Every rank calls this with as many numbers, as often.

        Raises:
            RanksDivergedError: a rank does not come: it waits inside the model.
        """
        if self.size == 1:
            return list(numbers)
        agreed = torch.tensor(list(numbers), dtype=torch.int64)
        work = dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self._group, async_op=True)
        try:
            work.wait(self._late)
        except RuntimeError as late:
            raise RanksDivergedError(
                "the tensor-parallel ranks of this instance wait for each other at different "
                f"places, so the server ends: restart it ({late})"
            ) from late
        return [int(number) for number in agreed]
