"""Whether all tensor-parallel ranks of an instance came through a chunk."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Ranks are in lock-step within a layer; who is this late waits inside a layer for ever.
LATE = timedelta(seconds=60)


class RanksDivergedError(RuntimeError):
    """A rank failed where its partners cannot notice: the instance cannot go on."""


class Agreement:
    """An agreement of an instance's ranks, chunk by chunk: one failed rank is a failure of all.

    So their queues stay alike.
    """

    def __init__(self, group: Any, size: int, late: timedelta = LATE) -> None:
        """``group`` is the instance's CPU process group of ``size`` ranks."""
        self._group = group
        self._size = size
        self._late = late

    def reach(self, error: str) -> str:
        """Exchange how a chunk went here; every rank of the instance calls this once a chunk.

        Args:
            error: what went wrong on this rank, "" when nothing did.

        Returns:
            ``error``, or that a partner failed, or "" when no rank did.

        Raises:
            RanksDivergedError: this rank failed and a partner waits for it inside the model.
        """
        if self._size == 1:
            return error
        well = torch.tensor([0 if error else 1])
        work = dist.all_reduce(well, dist.ReduceOp.MIN, group=self._group, async_op=True)
        try:
            work.wait(self._late)
        except RuntimeError as late:
            raise RanksDivergedError(
                f"{error or 'a partner failed'}; the other tensor-parallel ranks of this "
                "instance wait for it inside the model, so the server ends: restart it"
            ) from late
        return error or ("" if well.item() else "another tensor-parallel rank failed")
