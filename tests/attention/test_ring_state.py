"""The running state that partial attentions are merged into."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.partial import reference_attention


@settings(print_blob=True, deadline=None, max_examples=80)
@given(
    queries=st.integers(1, 12),
    blocks=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_any_blocks_on_any_rows(queries: int, blocks: list[tuple[int, int]], seed: int) -> None:
    """Each block of keys is seen by the rows from some row on: none, some or all of them."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, 4, 8, generator=draw)
    keys = [torch.randn(2, length, 2, 8, generator=draw) for length, _ in blocks]
    state = RunningState(q, value_dim=8, scale=0.5)
    for (k, v), (_, first) in zip(keys, blocks, strict=True):
        state.attend(k, v, causal=False, rows=slice(min(first, queries), queries))
    for row in range(queries):
        seen = [kv for kv, (_, first) in zip(keys, blocks, strict=True) if first <= row]
        k, v = torch.cat([torch.empty(2, 0, 2, 8), *seen], dim=1)
        out, lse = reference_attention(q[row : row + 1], k, v, causal=False, scale=0.5)
        torch.testing.assert_close(state.out[row].double(), out[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state.lse[row].double(), lse[0], atol=1e-5, rtol=1e-5)


def test_the_result_has_the_dtype_of_the_queries() -> None:
    q = torch.zeros(3, 2, 4, dtype=torch.bfloat16)
    state = RunningState(q, value_dim=6, scale=1.0)
    assert state.result().dtype == torch.bfloat16
    assert state.result().shape == (3, 2, 6)
    assert bool((state.lse == -math.inf).all())
