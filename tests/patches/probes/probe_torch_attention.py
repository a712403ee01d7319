"""What torch's attention is asked for when a batch extends requests, and what comes of it."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.layers.attention import torch_native_backend as module

HEADS, KV_HEADS, WIDTH = 4, 2, 8

# Tokens before the batch and new in it, by request.
CASES: dict[str, tuple[list[tuple[int, int]], dict[str, Any]]] = {
    "chunk": ([(1400, 70)], {"causal": True}),
    "long chunk": ([(1300, 1200)], {"causal": True}),
    "requests": ([(600, 40), (0, 30), (300, 1)], {"causal": True}),
    "short prefix": ([(30, 200)], {"causal": True}),
    "no prefix": ([(0, 100)], {"causal": True}),
    "window": ([(700, 40)], {"causal": True, "sliding_window_size": 100}),
    "encoder": ([(20, 10)], {"causal": False}),
}


def run() -> dict[str, Any]:
    """By case: rows of queries in all, and the output."""
    return {name: _extend(lengths, options) for name, (lengths, options) in CASES.items()}


def _extend(lengths: list[tuple[int, int]], options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(1)
    totals = [sum(pair) for pair in lengths]
    slots = torch.randperm(sum(totals)).split(totals)
    table = torch.zeros(len(lengths), max(totals), dtype=torch.int64)
    for row, part in enumerate(slots):
        table[row, : len(part)] = part
    query = torch.randn(sum(new for _, new in lengths), HEADS, WIDTH)
    output = torch.empty_like(query)
    rows: list[int] = []
    stock = module.scaled_dot_product_attention

    def count(q: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        rows.append(q.shape[2])
        return stock(q, *rest, **more)

    with mock.patch.object(module, "scaled_dot_product_attention", count):
        module.TorchNativeAttnBackend._run_sdpa_forward_extend(
            _backend(),
            query,
            output,
            torch.randn(sum(totals), KV_HEADS, WIDTH),
            torch.randn(sum(totals), KV_HEADS, WIDTH),
            table,
            torch.arange(len(lengths)),
            torch.tensor(totals),
            torch.tensor([prefix for prefix, _ in lengths]),
            torch.tensor([new for _, new in lengths]),
            enable_gqa=True,
            **options,
        )
    return {"rows": sum(rows), "output": output.flatten().tolist()}


def _backend() -> Any:
    """The methods that need no server, under the wheel's names and the patch's."""
    stock = module.TorchNativeAttnBackend
    names = ("_make_sliding_window_mask", "_make_causal_mask")
    return SimpleNamespace(**{name: getattr(stock, name) for name in names if hasattr(stock, name)})
