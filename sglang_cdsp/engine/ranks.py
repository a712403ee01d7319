"""The tensor-parallel ranks of this instance, for families whose rows all ranks hold alike."""

from __future__ import annotations

import torch
from sglang.srt.distributed import get_tp_group

from sglang_cdsp.parallel.ranks import ALONE, Ranks


def ranks_of(rank: int, size: int) -> Ranks:
    """This rank among ``size``. What they gather goes through SGLang's own group."""
    return ALONE if size == 1 else Ranks(rank, size, _gather)


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    gathered: torch.Tensor = get_tp_group().all_gather(tensor, dim=0)
    return gathered
