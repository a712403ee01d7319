"""Sinks on the torch backend: the definition, with and without windows, in both kinds of batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.platforms import sinks as ours
from tests.engine.family_models import Pool, masked

HEADS, KV_HEADS, DIM = 4, 2, 8
WIDTH = HEADS * DIM


def nobody(*_: Any) -> torch.Tensor:
    raise AssertionError("stock computes no sinks")


def pool_of(total: int) -> Pool:
    return Pool(total, ((KV_HEADS, DIM), (KV_HEADS, DIM)))


@settings(print_blob=True, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=3),
    window=st.sampled_from([-1, 0, 7, 100]),
    decodes=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_is_a_column_of_the_softmax_without_a_value(
    lengths: list[tuple[int, int]], window: int, decodes: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    if decodes:
        lengths = [(before, 1) for before, _ in lengths]
    total = sum(before + new for before, new in lengths)
    longest = max(before + new for before, new in lengths)
    slots = torch.randperm(total, generator=draw) + 1
    pool, table = pool_of(total + 1), torch.zeros(len(lengths), longest, dtype=torch.int32)
    sinks = torch.randn(HEADS, generator=draw)
    layer = RadixAttention(HEADS, DIM, 1.3, KV_HEADS, layer_id=0)
    layer.sliding_window_size = window
    prompts, new_slots, expected = [], [], []
    for row, (before, new) in enumerate(lengths):
        mine, slots = slots[: before + new], slots[before + new :]
        table[row, : before + new] = mine.int()
        q = torch.randn(before + new, HEADS, DIM, generator=draw)
        k, v = (torch.randn(before + new, KV_HEADS, DIM, generator=draw) for _ in range(2))
        pool.buffers[0][0][mine[:before]] = k[:before]
        pool.buffers[0][1][mine[:before]] = v[:before]
        prompts.append([x[before:].flatten(1) for x in (q, k, v)])
        new_slots.append(mine[before:])
        reach = None if window < 0 else window
        whole = masked(q.double(), k.double(), v.double(), 1.3, reach, sinks.double())
        expected.append(whole[before:].flatten(1))
    backend = SimpleNamespace(
        token_to_kv_pool=pool, req_to_token_pool=SimpleNamespace(req_to_token=table)
    )
    batch = SimpleNamespace(
        out_cache_loc=torch.cat(new_slots),
        req_pool_indices=torch.arange(len(lengths)),
        seq_lens=torch.tensor([before + new for before, new in lengths]),
        extend_seq_lens=torch.tensor([new for _, new in lengths]),
    )
    q, k, v = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    attend = ours.decode if decodes else ours.extend
    out = attend(nobody, backend, q, k, v, layer, batch, sinks=sinks)
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", [ours.extend, ours.decode])
def test_without_sinks_all_is_stocks(attend: Any) -> None:
    said: list[Any] = []

    def stock(*arguments: Any) -> torch.Tensor:
        said.extend(arguments)
        return torch.zeros(1)

    given = [object() for _ in range(6)]
    attend(stock, *given, save_kv_cache=False)
    assert said == [*given, False]


def test_the_backend_has_none_of_its_own() -> None:
    """Once it has, these hooks are of no more use."""
    for name in ("forward_extend", "forward_decode"):
        method = getattr(TorchNativeAttnBackend, name)
        assert "sinks" not in getattr(method, "__wrapped__", method).__code__.co_varnames
