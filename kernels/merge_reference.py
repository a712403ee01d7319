"""Merging of attention states, in plain torch.

An attention state over a set of keys is the pair of ``out``, the softmax-weighted values, and
``lse``, the natural log-sum-exp of the logits. For disjoint sets 1..n the state of their union is

    lse = log(sum_i exp(lse_i)),    out = sum_i exp(lse_i - lse) * out_i

and for two of them, with ``w = sigmoid(lse_2 - lse_1)``,

    out = out_1 + w * (out_2 - out_1),    lse = lse_1 - logsigmoid(lse_1 - lse_2)

(from dividing both weights by ``exp(lse_1)``). A state over no keys has ``lse = -inf``; its
``out`` is not read. A merge over no keys at all gives zeros and ``-inf``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def merge_states_reference(
    outs: torch.Tensor, lses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge ``n`` attention states; computes in float32.

    Args:
        outs: ``[n, T, H, D]``, any float dtype.
        lses: ``[n, T, H]``, float32, natural logarithms.

    Returns:
        ``(out [T, H, D] in the dtype of outs, lse [T, H] float32)``.
    """
    top = lses.amax(dim=0)
    # Rows without any key: subtracting -inf from itself would give NaN.
    top = torch.where(top == -math.inf, 0.0, top)
    weights = torch.exp(lses - top)
    total = weights.sum(dim=0)
    weights = weights / torch.where(total == 0.0, 1.0, total)
    seen = torch.where(weights[..., None] > 0.0, outs.float(), 0.0)
    out = (weights[..., None] * seen).sum(dim=0)
    return out.to(outs.dtype), top + torch.log(total)


def merge_into_reference(
    out: torch.Tensor, lse: torch.Tensor, other_out: torch.Tensor, other_lse: torch.Tensor
) -> None:
    """Merge a state into a running one, in place.

    Args:
        out: ``[T, H, D]``, float32, changed.
        lse: ``[T, H]``, float32, changed. ``-inf`` for rows that have seen no key yet; their
            ``out`` must be finite.
        other_out: ``[T, H, D]``, any float dtype.
        other_lse: ``[T, H]``, float32.
    """
    unseen = other_lse == -math.inf
    # -inf minus -inf is NaN; where the other state has no keys its weight is 0 in any case.
    gap = torch.where(unseen, -math.inf, other_lse - lse)
    weight = torch.sigmoid(gap)[..., None]
    addend = torch.where(unseen[..., None], out, other_out.float())
    out.lerp_(addend, weight)
    # The larger of the two plus a bounded term: exact where one of them is -inf.
    lse.copy_(torch.maximum(lse, other_lse) - F.logsigmoid(gap.abs()))
