"""Some models store KV in the kernel that rotates it, and call attention without saving."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.layer_check import UnsupportedLayer
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.spans import Span

TOKENS, HEADS, DIM = 5, 2, 8


class Pool:
    """One layer's KV by slot."""

    def __init__(self) -> None:
        self.keys = torch.zeros(16, HEADS, DIM)
        self.values = torch.zeros(16, HEADS, DIM)

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        self.keys[where.loc], self.values[where.loc] = k, v

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.values


def attention(pool: Pool, slots: torch.Tensor) -> ShardAttention:
    return ShardAttention(
        inner=SimpleNamespace(token_to_kv_pool=pool, req_to_token_pool=None),
        layout=RingLayout((0,), 0, (0,), ((Span(0, TOKENS),),)),
        links=None,
        own_slots=slots,
        history_slots=torch.empty(0, dtype=torch.int64),
        rebalancer=None,
    )


def test_what_the_model_stored_counts_not_what_it_passes() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(TOKENS, HEADS * DIM, generator=generator) for _ in range(3))
    by_head = (TOKENS, HEADS, DIM)
    slots = torch.tensor([9, 2, 11, 4, 7])
    batch: Any = SimpleNamespace(out_cache_loc=slots)
    layer = RadixAttention(HEADS, DIM, DIM**-0.5, HEADS, layer_id=0)
    saved, stored = Pool(), Pool()
    expected = attention(saved, slots).forward(q, k.view(by_head), v.view(by_head), layer, batch)
    stored.keys[slots], stored.values[slots] = k.view(by_head), v.view(by_head)
    stale = torch.full(by_head, 9.0)
    out = attention(stored, slots).forward(q, stale, stale, layer, batch, save_kv_cache=False)
    assert torch.equal(saved.keys, stored.keys)
    assert torch.allclose(out, expected)
    assert not torch.allclose(out, torch.full_like(out, 9.0))


def test_a_layer_without_keys_of_its_own_is_refused() -> None:
    slots = torch.arange(TOKENS)
    layer = RadixAttention(HEADS, DIM, 1.0, HEADS, layer_id=0)
    none: Any = None
    with pytest.raises(UnsupportedLayer, match="no keys and values of its own"):
        attention(Pool(), slots).forward(torch.zeros(TOKENS, 16), none, none, layer, none)
