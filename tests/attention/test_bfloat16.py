"""How far attention in bfloat16 may be off, by what it rounds (docs/usage.md).

Rounded to bfloat16 are the weights inside a kernel, each partial result, what travels back in the
Q ring, and the output: four times 2^-8 of the largest value at most, whatever the group's size.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings

from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.parallel.links.lanes import Lane
from tests.parallel.ring_cases import RingCase, ring_cases, run_threads

RANKS = 4
BOUND = 2.0**-6


def off_by(out: torch.Tensor, exact: torch.Tensor, values: torch.Tensor) -> float:
    """The largest error, in units of the largest value."""
    return float((out.double() - exact).abs().max() / values.double().abs().max())


@pytest.mark.parametrize("way", [ring_attention, q_ring_attention])
@settings(print_blob=True, deadline=None, max_examples=40)
@given(case=ring_cases(RANKS))
def test_rings_keep_to_the_bound(
    lanes: list[Lane], way: Callable[..., torch.Tensor], case: RingCase
) -> None:
    out = run_threads(case, lanes, way, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    values = case.tensors()[2].bfloat16()
    assert off_by(out, case.expected(torch.bfloat16), values) <= BOUND


def test_many_partial_results_round_no_more_than_few() -> None:
    """They are merged in float32: 512 equal weights, of which the second half has other values.

    Kept in bfloat16 the state would soon no longer move.
    """
    blocks = 512
    q = torch.zeros(1, 1, 8, dtype=torch.bfloat16)
    keys = torch.zeros(blocks, 1, 8, dtype=torch.bfloat16)
    values = torch.ones(blocks, 1, 8, dtype=torch.bfloat16)
    values[blocks // 2 :] = 2.0
    kept, rounded = RunningState(q, 8, 1.0), RunningState(q, 8, 1.0)
    for block in range(blocks):
        one = slice(block, block + 1)
        kept.attend(keys[one], values[one], causal=False)
        rounded.attend(keys[one], values[one], causal=False)
        rounded.out.copy_(rounded.out.bfloat16())
    assert kept.out.dtype == kept.lse.dtype == torch.float32
    exact = values.double().mean(dim=0, keepdim=True)
    assert off_by(kept.result(), exact, values) <= BOUND
    assert off_by(rounded.result(), exact, values) > BOUND, "the bound would not see it"
