"""Cases for ring attention that every member can build by itself, and what they must give.

For tests and for the GPU check: members are threads of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from sglang_cdsp.attention.blocks import TensorBlock
from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.attention.ring import RingLayout
from sglang_cdsp.parallel.links.types import Exchanger
from sglang_cdsp.parallel.spans import Span, split_chunk

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class RingCase:
    """A chunk on a group, with history dealt out page by page in a seeded order."""

    group: tuple[int, ...]
    history: int
    tokens: int
    page_size: int = 1
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    seed: int = 0
    lopsided: bool = False

    @property
    def scale(self) -> float:
        return 2.0 / math.sqrt(self.head_dim)  # twice the usual: sharper weights show more

    def history_rows(self) -> list[list[int]]:
        """Return each member's history positions, shuffled, so that their order cannot matter."""
        size = len(self.group)
        draw = torch.Generator().manual_seed(self.seed + 1)
        order = torch.randperm(self.history, generator=draw).tolist()
        if self.lopsided:
            return [order, *([] for _ in range(size - 1))]
        return [order[member::size] for member in range(size)]

    def layout(self, me: int) -> RingLayout:
        pieces = split_chunk(self.history, self.tokens, len(self.group), self.page_size)
        held = tuple(len(rows) for rows in self.history_rows())
        return RingLayout(self.group, me, held, pieces)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q, k and v of history and chunk, in prompt order, float32."""
        draw = torch.Generator().manual_seed(self.seed)
        total = self.history + self.tokens
        return (
            torch.randn(total, self.q_heads, self.head_dim, generator=draw),
            torch.randn(total, self.kv_heads, self.head_dim, generator=draw),
            torch.randn(total, self.kv_heads, self.value_dim, generator=draw),
        )

    def expected(
        self, dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> torch.Tensor:
        """Return the chunk's attention ``[tokens, Hq, Dv]``, float64, of inputs in ``dtype``."""
        q, k, v = (x.to(device, dtype) for x in self.tensors())
        out, _ = reference_attention(
            q[self.history :], k, v, causal=True, scale=self.scale, q_start=self.history
        )
        return out

    def member_inputs(
        self, me: int, dtype: torch.dtype, device: torch.device = CPU
    ) -> tuple[torch.Tensor, TensorBlock]:
        """Return q and the block of one member."""
        q, k, v = (x.to(device, dtype) for x in self.tensors())
        own = rows_of(self.layout(me).pieces[me]).to(device)
        held = torch.tensor(self.history_rows()[me], dtype=torch.long, device=device)
        return q[own], TensorBlock(k[own], v[own], k[held], v[held])

    def assemble(self, outs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put the members' results back into prompt order."""
        result = torch.full(
            (self.tokens, self.q_heads, self.value_dim),
            math.nan,
            dtype=outs[0].dtype,
            device=outs[0].device,
        )
        for spans, out in zip(self.layout(0).pieces, outs, strict=True):
            result[rows_of(spans).to(out.device) - self.history] = out
        return result


def rows_of(spans: Sequence[Span]) -> torch.Tensor:
    """Return the positions of ``spans`` as an index."""
    parts = [torch.arange(span.start, span.stop) for span in spans]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


Attention = Callable[..., torch.Tensor]


def run_member(
    case: RingCase,
    links: Exchanger | None,
    me: int,
    attention: Attention,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> torch.Tensor:
    """Run one member's part of ``case``; on CUDA on a stream of its own, as a process would."""
    with own_stream(device):
        inputs = case.member_inputs(me, dtype, device)
        return attention(*inputs, case.layout(me), links, scale=case.scale)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a new CUDA stream and wait for it; on other devices just run it."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def in_threads(work: Callable[[int], T], ranks: Sequence[int]) -> list[T]:
    """Run ``work(rank)`` for all ranks at once; raise the first error."""
    # A thread for each member is parallel enough; OpenMP threads inside them would only contend.
    with ThreadPoolExecutor(
        max_workers=max(1, len(ranks)), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return [future.result() for future in [pool.submit(work, rank) for rank in ranks]]


def run_threads(
    case: RingCase,
    links: Sequence[Exchanger],
    attention: Attention,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> torch.Tensor:
    """Run ``case`` with a thread for each member and return the chunk's attention."""

    def member(me: int) -> torch.Tensor:
        return run_member(case, links[case.group[me]], me, attention, dtype, device)

    return case.assemble(in_threads(member, range(len(case.group))))
