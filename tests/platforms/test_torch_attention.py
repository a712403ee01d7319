"""The platform's attention gives what SGLang's torch backend gives, from the new queries alone."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import sglang  # noqa: F401 - declares torchvision's operators first
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from sglang_cdsp.platforms import torch_attention

# The method itself, also where another test of this process has let SGLang apply our hooks.
STOCK = {
    name: getattr(method, "__wrapped__", method)
    for name in ("extend", "decode")
    if (method := getattr(TorchNativeAttnBackend, f"_run_sdpa_forward_{name}"))
}
BACKEND = SimpleNamespace(
    _make_sliding_window_mask=TorchNativeAttnBackend._make_sliding_window_mask
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True)
class Batch:
    """Requests by their tokens before this batch and new in it, and how their KV lies."""

    lengths: list[tuple[int, int]]
    kv_heads: int
    shared: int
    width: int
    scattered: int
    seed: int
    dtype: torch.dtype
    cache_dtype: torch.dtype

    def tensors(self) -> dict[str, Any]:
        """The backend's arguments, but for ``query`` and ``output``."""
        torch.manual_seed(self.seed)
        total = sum(sum(pair) for pair in self.lengths)
        slots = torch.arange(3, 3 + total)
        # All in order, all in disorder, or the tail of each row only.
        if self.scattered == 2:
            slots = slots[torch.randperm(total)]
        longest = max(sum(pair) for pair in self.lengths)
        table = torch.zeros(len(self.lengths) + 1, longest, dtype=torch.int32)
        rows = torch.randperm(len(self.lengths) + 1)[: len(self.lengths)]
        for row, part in zip(rows, slots.split([sum(p) for p in self.lengths]), strict=True):
            if self.scattered == 1:
                part = torch.cat([part[: len(part) // 2], part[len(part) // 2 :].flip(0)])
            table[row, : len(part)] = part.to(torch.int32)
        cache = (total + 5, self.kv_heads, self.width)
        return {
            "k_cache": torch.randn(cache, dtype=torch.float64).to(self.cache_dtype),
            "v_cache": torch.randn(cache, dtype=torch.float64).to(self.cache_dtype),
            "req_to_token": table,
            "req_pool_indices": rows,
            "seq_lens": torch.tensor([sum(pair) for pair in self.lengths]),
            "scaling": 0.3,
            "enable_gqa": self.shared > 1,
        }

    def queries(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.kv_heads * self.shared, self.width).to(self.dtype)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    return Batch(
        lengths=draw(
            st.lists(
                st.tuples(st.sampled_from([0, 0, 1, 7, 64, 600]), st.integers(1, 300)),
                min_size=1,
                max_size=4,
            )
        ),
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        shared=draw(st.sampled_from([1, 2, 3])),
        width=draw(st.sampled_from([8, 32])),
        scattered=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 2**31)),
        dtype=dtype,
        cache_dtype=draw(st.sampled_from([dtype, torch.float32])),
    )


def both(name: str, query: torch.Tensor, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Stock's output and ours."""
    stock, ours = torch.empty_like(query), torch.empty_like(query)
    stock_function = STOCK[name]
    stock_function(BACKEND, query, stock, **arguments)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("plain attention was left to stock")

    returned = getattr(torch_attention, name)(refuse, BACKEND, query, ours, **arguments)
    assert returned is ours
    return stock, ours


@settings(print_blob=True, deadline=None, max_examples=60)
@given(batch=batches())
def test_extend_gives_what_stock_gives(batch: Batch) -> None:
    arguments = batch.tensors()
    arguments["extend_prefix_lens"] = torch.tensor([prefix for prefix, _ in batch.lengths])
    arguments["extend_seq_lens"] = torch.tensor([new for _, new in batch.lengths])
    query = batch.queries(sum(new for _, new in batch.lengths))
    stock, ours = both("extend", query, {**arguments, "causal": True})
    torch.testing.assert_close(ours, stock, atol=TOLERANCE[batch.dtype], rtol=0)


@settings(print_blob=True, deadline=None, max_examples=60)
@given(batch=batches())
def test_decode_gives_what_stock_gives(batch: Batch) -> None:
    if batch.dtype not in (torch.float32, torch.float64):
        batch = dataclasses.replace(batch, dtype=torch.float32)
    batch = dataclasses.replace(batch, cache_dtype=batch.dtype)
    query = batch.queries(len(batch.lengths))
    stock, ours = both("decode", query, batch.tensors())
    torch.testing.assert_close(ours, stock, atol=TOLERANCE[batch.dtype], rtol=0)


def plain(lengths: list[tuple[int, int]], scattered: int = 0) -> Batch:
    return Batch(lengths, 2, 2, 8, scattered, 0, torch.float32, torch.float32)


def test_extend_computes_the_new_queries_only() -> None:
    batch = plain([(600, 40), (0, 30)])
    arguments = {
        **batch.tensors(),
        "extend_prefix_lens": torch.tensor([600, 0]),
        "extend_seq_lens": torch.tensor([40, 30]),
        "causal": True,
    }
    query = batch.queries(70)
    kernel = getattr(torch.ops.aten, KERNEL)
    seen: list[tuple[int, int]] = []

    def count(q: torch.Tensor, k: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append((q.shape[2], k.shape[2]))
        return kernel(q, k, *rest, **more)

    with mock.patch.object(torch.ops.aten, KERNEL, count):
        torch_attention.extend(mock.Mock(), BACKEND, query, torch.empty_like(query), **arguments)
    assert seen == [(40, 600), (40, 40), (30, 30)]


def test_decode_reads_keys_in_place_where_they_lie_in_order() -> None:
    batch = plain([(500, 1), (1, 1)])
    arguments = batch.tensors()
    query = batch.queries(2)
    with mock.patch.object(torch, "index_select", side_effect=AssertionError("copied")):
        torch_attention.decode(mock.Mock(), BACKEND, query, torch.empty_like(query), **arguments)


@pytest.mark.parametrize(
    "trick",
    [
        {"causal": False},
        {"sliding_window_size": 5},
        {"encoder_lens": torch.tensor([3])},
    ],
    ids=lambda trick: next(iter(trick)),
)
def test_what_is_not_plain_is_left_to_stock(trick: dict[str, Any]) -> None:
    batch = plain([(10, 20)])
    arguments = {"causal": True, **batch.tensors(), **trick}
    extend: dict[str, Any] = {
        "extend_prefix_lens": torch.tensor([10]),
        "extend_seq_lens": torch.tensor([20]),
    }
    query = batch.queries(20)
    expected, output = torch.empty_like(query), torch.empty_like(query)
    if "encoder_lens" in trick:
        arguments["seq_lens"] = arguments["seq_lens"] - 3
        extend["extend_prefix_lens"] = extend["extend_prefix_lens"] - 3
    STOCK["extend"](BACKEND, query, expected, **arguments, **extend)
    torch_attention.extend(STOCK["extend"], BACKEND, query, output, **arguments, **extend)
    assert torch.equal(output, expected)


def test_a_window_in_decode_is_left_to_stock() -> None:
    batch = plain([(30, 1)])
    arguments = {**batch.tensors(), "sliding_window_size": 5}
    query = batch.queries(1)
    expected, output = torch.empty_like(query), torch.empty_like(query)
    STOCK["decode"](BACKEND, query, expected, **arguments)
    torch_attention.decode(STOCK["decode"], BACKEND, query, output, **arguments)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decode_in_half_precision_is_left_to_stock(dtype: torch.dtype) -> None:
    batch = dataclasses.replace(plain([(30, 1)]), dtype=dtype, cache_dtype=dtype)
    query = batch.queries(1)
    stock = mock.Mock()
    torch_attention.decode(stock, BACKEND, query, query.clone(), **batch.tensors())
    stock.assert_called_once()


def test_values_of_another_width_are_left_to_stock() -> None:
    batch = plain([(30, 1)])
    arguments = batch.tensors()
    arguments["v_cache"] = arguments["v_cache"][..., :4]
    query = batch.queries(1)
    stock = mock.Mock()
    torch_attention.decode(stock, BACKEND, query, torch.empty(1, 4, 4), **arguments)
    stock.assert_called_once()
