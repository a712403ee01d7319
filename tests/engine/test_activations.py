"""How long a shard may be: widths of the built model against the memory that is left."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.engine import activations
from sglang_cdsp.engine.activations import Widths, largest_shard, measured_shard, widths_of
from sglang_cdsp.engine.model_check import UnsupportedModel

# LLaMA3-8B in bfloat16.
LLAMA = Widths(4096, 4096, 1024, 1024, 2048, 4096, 14336, 1, 128256, 2)
GIB = 2**30


def scheduler(device: str = "cuda", **text: Any) -> Any:
    """Four query and two KV heads a rank."""
    layers = torch.nn.ModuleList(RadixAttention(4, 8, 0.5, 2, layer_id=i) for i in range(2))
    runner = SimpleNamespace(model=layers, dtype=torch.bfloat16, device=device)
    config = SimpleNamespace(hidden_size=64, vocab_size=99, hf_text_config=SimpleNamespace(**text))
    return SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner), model_config=config)


def test_widths_are_those_of_the_rank() -> None:
    found = widths_of(scheduler(intermediate_size=200), 2)
    assert found == Widths(64, 32, 16, 16, 32, 32, 100, 1, 99, 2)


def test_experts_count_by_how_many_a_token_goes_to() -> None:
    text: dict[str, Any] = {
        "intermediate_size": 200,
        "moe_intermediate_size": 60,
        "num_experts_per_tok": 8,
    }
    found = widths_of(scheduler("cuda", **text), 1)
    assert (found.mlp, found.routed) == (480, 8)
    assert widths_of(scheduler(n_inner=None), 1).mlp == 256


def test_an_8b_model_takes_a_hundred_kilobytes_a_token() -> None:
    assert 90_000 < LLAMA.token_bytes < 130_000
    assert LLAMA.kv_bytes == 4096


def test_guests_are_reckoned_where_q_circulates() -> None:
    """Two members' queries, two answers to them and two to the own ones, of 8 KiB each; and one
    of the answers in float32."""
    travelling = 3 * 2 * 8192 + 16384
    base = LLAMA.q_ring_bytes - travelling
    assert base == 3 * 8192 + (2 * 6144 + 2 * 4096) * 2 + 16384
    assert LLAMA.q_ring_bytes > LLAMA.token_bytes, "the MLP needs more than attention with KV"
    # With experts it is the MLP either way.
    wide = replace(LLAMA, mlp=60_000, routed=8)
    assert wide.q_ring_bytes == wide.token_bytes


@pytest.mark.parametrize(("capacity", "by_kv"), [(1000, False), (500_000, True)])
def test_the_way_that_needs_more_bounds_the_shard(capacity: int, by_kv: bool) -> None:
    """Guests where there is little KV, two blocks where there is much."""
    tokens = largest_shard(10 * GIB, capacity, LLAMA)
    shared = activations.SHARE * 10 * GIB - LLAMA.fixed_bytes
    block = capacity * LLAMA.kv_bytes
    ways = {
        True: (shared - activations.BLOCKS * block) // LLAMA.token_bytes,
        False: (shared - activations.GATHERED * block) // LLAMA.q_ring_bytes,
    }
    assert tokens == ways[by_kv] < ways[not by_kv]


@given(st.integers(0, 80 * GIB), st.integers(0, 1 << 20))
def test_what_is_reckoned_fits(free: int, capacity: int) -> None:
    """What travels, were it all KV that the rank holds, and the activations are in the share."""
    tokens = largest_shard(free, capacity, LLAMA)
    if tokens > 0:
        block = capacity * LLAMA.kv_bytes
        by_kv = tokens * LLAMA.token_bytes + activations.BLOCKS * block
        by_q = tokens * LLAMA.q_ring_bytes + activations.GATHERED * block
        assert max(by_kv, by_q) <= activations.SHARE * free
    more = largest_shard(free + GIB, capacity, LLAMA)
    assert more > tokens


def test_what_expands_beside_a_shard_is_reckoned() -> None:
    expanding = replace(LLAMA, reading=100_000_000)
    less = largest_shard(10 * GIB, 1000, LLAMA) - largest_shard(10 * GIB, 1000, expanding)
    assert less == pytest.approx(200_000_000 / LLAMA.q_ring_bytes, abs=1)


def test_a_host_has_no_largest_shard() -> None:
    assert measured_shard(scheduler("cpu"), 1, 1000) is None


def test_memory_that_torch_has_cached_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(
        mem_get_info=lambda: (1000_000, 0),
        memory_reserved=lambda: 900_000,
        memory_allocated=lambda: 400_000,
    )
    monkeypatch.setattr(torch, "cuda", memory)
    ours = scheduler(intermediate_size=200)
    expected = largest_shard(1_500_000, 100, widths_of(ours, 1))
    assert measured_shard(ours, 1, 100) == expected > activations.LEAST_TOKENS
    with pytest.raises(UnsupportedModel, match="lower --mem-fraction-static") as caught:
        measured_shard(ours, 1, 1_000_000)
    assert "\n" not in str(caught.value)
