"""Cases for ring attention that every member can build by itself, and what they must give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore

from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.attention.ring import RingLayout
from sglang_cdsp.parallel.mesh import Mesh
from sglang_cdsp.parallel.spans import Span, split_chunk

T = TypeVar("T")


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

    def expected(self) -> torch.Tensor:
        """Return the chunk's attention ``[tokens, Hq, Dv]``, float64."""
        q, k, v = self.tensors()
        out, _ = reference_attention(
            q[self.history :], k, v, causal=True, scale=self.scale, q_start=self.history
        )
        return out

    def member_inputs(self, me: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Return q, k, v, k_history and v_history of one member."""
        q, k, v = (x.to(dtype) for x in self.tensors())
        own = rows_of(self.layout(me).pieces[me])
        held = torch.tensor(self.history_rows()[me], dtype=torch.long)
        return q[own], k[own], v[own], k[held], v[held]

    def assemble(self, outs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put the members' results back into prompt order."""
        result = torch.full(
            (self.tokens, self.q_heads, self.value_dim), math.nan, dtype=outs[0].dtype
        )
        for spans, out in zip(self.layout(0).pieces, outs, strict=True):
            result[rows_of(spans) - self.history] = out
        return result


@st.composite
def ring_cases(draw: st.DrawFn, available: int) -> RingCase:
    """Draw cases on groups of 1 to ``available`` ranks."""
    ranks = draw(st.permutations(range(available)))
    page = draw(st.sampled_from([1, 3, 16, 64]))
    kv_heads = draw(st.integers(1, 3))
    return RingCase(
        group=tuple(ranks[: draw(st.integers(1, available))]),
        history=draw(st.one_of(st.just(0), st.integers(0, 12))) * page,
        tokens=draw(st.one_of(st.integers(1, 12), st.sampled_from([63, 64, 65, 127, 129, 251]))),
        page_size=page,
        q_heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([8, 24])),
        value_dim=draw(st.sampled_from([8, 24])),
        seed=draw(st.integers(0, 1000)),
        lopsided=draw(st.booleans()),
    )


def rows_of(spans: Sequence[Span]) -> torch.Tensor:
    """Return the positions of ``spans`` as an index."""
    parts = [torch.arange(span.start, span.stop) for span in spans]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


Attention = Callable[..., torch.Tensor]


def run_member(
    case: RingCase,
    mesh: Mesh | None,
    me: int,
    attention: Attention,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Run one member's part of ``case``."""
    return attention(*case.member_inputs(me, dtype), case.layout(me), mesh, scale=case.scale)


def thread_meshes(size: int) -> list[Mesh]:
    """Connect ``size`` ranks, all in this process, with real gloo links."""
    store = HashStore()

    def connect(rank: int) -> Mesh:
        return Mesh.from_store(
            store, rank, size, bind_host="127.0.0.1", timeout=timedelta(seconds=60)
        )

    return in_threads(connect, range(size))


def in_threads(work: Callable[[int], T], ranks: Sequence[int]) -> list[T]:
    """Run ``work(rank)`` for all ranks at once; raise the first error."""
    # A thread for each member is parallel enough; OpenMP threads inside them would only contend.
    with ThreadPoolExecutor(
        max_workers=max(1, len(ranks)), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return [future.result() for future in [pool.submit(work, rank) for rank in ranks]]


def run_threads(
    case: RingCase,
    meshes: Sequence[Mesh],
    attention: Attention,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Run ``case`` with a thread for each member and return the chunk's attention."""

    def member(me: int) -> torch.Tensor:
        return run_member(case, meshes[case.group[me]], me, attention, dtype)

    return case.assemble(in_threads(member, range(len(case.group))))
