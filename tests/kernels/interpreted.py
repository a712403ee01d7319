"""Runs the Triton kernels on the CPU, in a process of its own, for the tests.

Triton decides when a kernel is defined whether it is interpreted, so ``TRITON_INTERPRET=1`` must
be set before the import. Reads one JSON case a line; answers with one JSON line: how far the
kernels are from the references, or the name of the error.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch
from sglang_cdsp.kernels import merge
from sglang_cdsp.kernels.merge_reference import merge_into_reference, merge_states_reference


def states(
    n: int, tokens: int, heads: int, dim: int, dtype: str, unseen: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw states; a share ``unseen`` of their rows saw no key and holds NaN."""
    draw = torch.Generator().manual_seed(seed)
    outs = torch.randn(n, tokens, heads, dim, generator=draw).to(getattr(torch, dtype))
    lses = torch.randn(n, tokens, heads, generator=draw) * 20
    empty = torch.rand(n, tokens, heads, generator=draw) < unseen
    return outs.masked_fill(empty[..., None], math.nan), lses.masked_fill(empty, -math.inf)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest difference; NaN where only one is infinite or NaN."""
    same = left.float() == right.float()  # also both -inf
    gap = (left.float() - right.float()).abs().masked_fill(same, 0.0)
    return float(gap.max()) if gap.numel() else 0.0


def compare(case: dict[str, Any]) -> dict[str, float]:
    """Run both kernels and both references on one case."""
    outs, lses = states(**case)
    kept = outs.clone(), lses.clone()
    out, lse = merge.merge_states(outs, lses)
    expected_out, expected_lse = merge_states_reference(outs, lses)
    assert out.dtype == outs.dtype
    assert torch.equal(outs.isnan(), kept[0].isnan())
    assert torch.equal(lses, kept[1])

    shape = outs.shape[1:]
    running = torch.zeros(shape), torch.full(shape[:2], -math.inf)
    plain = torch.zeros(shape), torch.full(shape[:2], -math.inf)
    for part_out, part_lse in zip(outs, lses, strict=True):
        merge.merge_into(*running, part_out, part_lse)
        merge_into_reference(*plain, part_out, part_lse)
    return {
        "states_out": distance(out, expected_out),
        "states_lse": distance(lse, expected_lse),
        "into_out": distance(running[0], plain[0]),
        "into_lse": distance(running[1], plain[1]),
        "forms_out": distance(running[0].to(outs.dtype), out),
        "forms_lse": distance(running[1], lse),
    }


def main() -> None:
    """Answer cases until the input ends."""
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = compare(json.loads(line))
        except Exception as error:  # the test shows it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
