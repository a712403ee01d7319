"""Attention of SGLang's torch backend on one CPU core, stock's and the CPU platform's.

    python -m bench.micro.torch_attention [--tokens 8000] [--chunks 512,1024,2048,4096,8192]
        [--repeats 5] [--form stock|platform]

One layer of the demonstration's checkpoint, float32. Extend: a whole prompt in chunks of a size.
Decode: one step of one row. CPU time, the least of the repeats. With `--form` only that form runs,
to be timed from outside as a process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import sglang  # noqa: F401 - declares torchvision's operators first
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

from sglang_cdsp.platforms import torch_attention
from sglang_cdsp.testing.checkpoint import LlamaShape

SLOTS = 40_000
FORMS = ("stock", "platform")
Attention = Callable[..., Any]


def attention(form: str, phase: str) -> Attention:
    """One form of extend or decode, as a function of the backend's arguments."""
    method = getattr(TorchNativeAttnBackend, f"_run_sdpa_forward_{phase}")
    stock = getattr(method, "__wrapped__", method)
    backend = SimpleNamespace()
    if form == "stock":
        return lambda *given, **named: stock(backend, *given, **named)
    ours = getattr(torch_attention, phase)
    return lambda *given, **named: ours(stock, backend, *given, **named)


class Row:
    """One request's KV, in slots that lie one after the other but for the last 100."""

    def __init__(self, tokens: int) -> None:
        """Keys and values are drawn."""
        shape = LlamaShape()
        self._cache = [
            torch.randn(SLOTS, shape.num_key_value_heads, shape.head_dim) for _ in range(2)
        ]
        self._heads, self._width = shape.num_attention_heads, shape.head_dim
        tail = min(100, tokens // 2)
        far = tokens + 2 * torch.arange(tail)
        self._table = torch.cat([torch.arange(tokens - tail), far]).to(torch.int32).unsqueeze(0)

    def extend(self, attend: Attention, prefix: int, new: int) -> None:
        """One chunk."""
        lengths = (torch.tensor([prefix + new]), torch.tensor([prefix]), torch.tensor([new]))
        self._run(attend, new, *lengths, causal=True)

    def decode(self, attend: Attention) -> None:
        """One step."""
        self._run(attend, 1, torch.tensor([self._table.shape[1]]))

    def _run(self, attend: Attention, queries: int, *lengths: torch.Tensor, **more: Any) -> None:
        query = torch.randn(queries, self._heads, self._width)
        row = torch.tensor([0])
        out = torch.empty_like(query)
        attend(query, out, *self._cache, self._table, row, *lengths, enable_gqa=True, **more)


def least(work: Callable[[], None], repeats: int) -> float:
    """CPU milliseconds, the least of ``repeats``."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1000


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8000)
    chunks = "512,1024,2048,4096,8192"
    parser.add_argument("--chunks", default=chunks, help="sizes; empty for decode only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--form", choices=FORMS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    forms = [options.form] if options.form else FORMS
    row = Row(options.tokens)
    for size in [int(part) for part in options.chunks.split(",") if part]:

        def prompt(attend: Attention, size: int = size) -> None:
            for start in range(0, options.tokens, size):
                row.extend(attend, start, min(size, options.tokens - start))

        for form in forms:
            attend = attention(form, "extend")
            took = least(lambda attend=attend: prompt(attend), options.repeats)  # type: ignore[misc]
            print(
                f"extend, {options.tokens} tokens in chunks of {size:5d}, {form:8s} {took:9.1f} ms"
            )
    for form in forms:
        attend = attention(form, "decode")
        took = least(lambda attend=attend: row.decode(attend), 20 * options.repeats)  # type: ignore[misc]
        print(f"decode, one row of {options.tokens} tokens, {form:8s} {took:9.3f} ms")


if __name__ == "__main__":
    main()
