"""Step 3: KV ring and Q ring among threads of one process, against one attention call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench.gpu.attention import within
from bench.gpu.record import CheckFailed, Recorder
from bench.gpu.target import Target
from sglang_cdsp.attention.partial import partial_attention
from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.links.types import Exchanger, LinkShape
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Move, Span
from sglang_cdsp.testing.links import SMALL, thread_lanes
from sglang_cdsp.testing.rings import (
    Attention,
    RingCase,
    in_threads,
    own_stream,
    run_threads,
)

SIZES = (2, 4, 8)
WAYS: dict[str, Attention] = {"KV": ring_attention, "Q": q_ring_attention}


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""
    with lanes(target, max(SIZES)) as links:
        for name, work in checks(target, links):
            recorder.check(name, work)


@contextmanager
def lanes(target: Target, size: int) -> Iterator[list[Lane]]:
    """A lane among ``size`` threads; tensors of a device pass through host memory."""
    shape = SMALL if target.small else LinkShape(lanes=1, depth=2, slot_bytes=4 << 20)
    links = thread_lanes(size, shape)
    try:
        yield links
    finally:
        for lane in links:
            lane.close()


def checks(
    target: Target, links: Sequence[Exchanger]
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work of every check of the step."""
    for size in SIZES:
        for case in ring_cases(size, target.small):
            for name, way in WAYS.items():
                words = f"{name} ring of {size}, {case.tokens} tokens after {case.history}"
                yield words, partial(check_ring, target, links, way, case)
        yield f"moves among {size}", partial(check_moves, target, links, size)


def ring_cases(size: int, small: bool) -> list[RingCase]:
    """No history; a long one with a short chunk; one member with all of it; an odd remainder."""
    tokens, history = (129, 192) if small else (2047, 8192)
    dim, page = (16, 16) if small else (64, 64)
    first = RingCase(
        group=tuple(reversed(range(size))),
        history=0,
        tokens=tokens,
        page_size=page,
        q_heads=8,
        kv_heads=2,
        head_dim=dim,
        value_dim=dim,
    )
    return [
        first,
        replace(first, history=history, tokens=tokens // 4, seed=1),
        replace(first, history=history, seed=2, lopsided=True),
    ]


def check_ring(
    target: Target, links: Sequence[Exchanger], way: Attention, case: RingCase
) -> dict[str, float]:
    """Compare a ring with one attention call over everything, both against float64.

    Raises:
        CheckFailed: the ring is off.
    """
    expected = case.expected(target.dtype, target.device)
    out = run_threads(case, links, way, target.dtype, target.device)
    error = within("ring", out, expected, target.tolerance)
    q, k, v = (x.to(target.device, target.dtype) for x in case.tensors())
    whole, _ = partial_attention(q, k, v, causal=True, scale=case.scale)
    one_call = within("one call", whole[case.history :], expected, target.tolerance)
    between = within("ring against one call", out, whole[case.history :], 2 * target.tolerance)
    return {"off by": error, "one call off by": one_call, "apart": between}


def check_moves(target: Target, links: Sequence[Exchanger], size: int) -> dict[str, float]:
    """Every rank gives rows of its pools to the next one; they lie there bit by bit.

    Raises:
        CheckFailed: a row is not where it belongs, or another one was touched.
    """
    rows = 64 if target.small else 4096
    slots, heads, dim = 4 * rows, 2, 64
    moves = [
        Move(rank, (rank + 1) % size, Span(rank * rows, (rank + 1) * rows)) for rank in range(size)
    ]
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(size))

    def pool(rank: int, part: int) -> torch.Tensor:
        return target.randn(slots, heads, dim, seed=10 * rank + part)

    def member(rank: int) -> str:
        with own_stream(target.device):
            keys, values = pool(rank, 0), pool(rank, 1)
            mine, theirs = order[:rows].to(target.device), order[rows : 2 * rows].to(target.device)
            expected = [x.clone() for x in (keys, values)]
            for part, wanted in enumerate(expected):
                wanted[theirs] = pool((rank - 1) % size, part)[mine]
            arriving = moves[(rank - 1) % size].span
            handle = start_moves(
                (keys, values),
                moves,
                rank,
                lambda span: theirs if span == arriving else mine,
                links[rank],
            )
            keys[mine], values[mine] = 0.0, 0.0  # they were copied; their slots may be reused
            for wanted in expected:
                wanted[mine] = 0.0
            handle.wait()
            right = torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
        return "" if right else f"rank {rank}"

    wrong = [rank for rank in in_threads(member, range(size)) if rank]
    if wrong:
        raise CheckFailed(f"rows are wrong at {', '.join(wrong)}")
    return {"rows": float(rows)}
