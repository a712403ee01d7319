"""Step 2: partial attention and merges, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sglang_cdsp.kernels.merge import merge_into, merge_states

from bench.gpu.record import CheckFailed, Recorder
from bench.gpu.target import Target
from sglang_cdsp.attention.partial import (
    IMPLEMENTATIONS,
    Implementation,
    attend_with,
    reference_attention,
)

LSE_TOLERANCE = 2e-3
"""Absolute and relative, of log-sum-exps near 7; a wrong base is off by 2."""
MergeStates = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class AttentionCase:
    """One call of partial attention.

    Attributes:
        head_dim: of Q, K and V.
        shared: query heads that read one KV head.
        causal: as in ``partial_attention``.
        strided: whether Q, K and V are views of one fused projection, as in a model.
        queries, keys: rows; equal where causal.
    """

    head_dim: int
    shared: int
    causal: bool
    strided: bool
    queries: int
    keys: int

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        view = ", strided" if self.strided else ""
        return f"head {self.head_dim}, grouped {self.shared}, {kind}{view}, {self.queries} queries"


@dataclass(frozen=True)
class MergeCase:
    """One merge: ``states`` states, ``tokens`` tokens, ``heads`` heads of ``dim``."""

    states: int
    tokens: int
    heads: int
    dim: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.states} states of {self.tokens}x{self.heads}x{self.dim}, {dtype}"


def attention_cases(small: bool) -> list[AttentionCase]:
    """Head dimensions, grouped heads, masks, strided or not; 256 last, it may be compiled first."""
    rows = 65 if small else 1000
    cases = [
        AttentionCase(head_dim, shared, causal, strided, rows, rows if causal else 2 * rows + 1)
        for head_dim in (64, 128, 256)
        for shared in (1, 4, 8)
        for causal, strided in ((True, False), (True, True), (False, True))
    ]
    short = [replace(case, queries=1, keys=rows) for case in cases[:9] if not case.causal]
    return [*short, *cases]


def merge_cases(small: bool) -> list[MergeCase]:
    """Two and more states, usual and odd head dimensions."""
    tokens = 33 if small else 4097
    return [
        MergeCase(states, tokens, heads, dim, dtype)
        for states, heads, dim in ((2, 32, 128), (3, 8, 64), (8, 4, 256), (4, 5, 80))
        for dtype in (torch.float32, torch.bfloat16)
    ]


def usable(target: Target, head_dim: int) -> list[Implementation]:
    """The implementations that serve the target's tensors."""
    return [i for i in IMPLEMENTATIONS if i.usable(target.device, target.dtype, head_dim)]


def inputs(target: Target, case: AttentionCase) -> tuple[torch.Tensor, ...]:
    """q, k and v; strided ones lie in the rows of one projection."""
    kv_heads = 2
    heads = kv_heads * case.shared
    if not case.strided:
        return (
            target.randn(case.queries, heads, case.head_dim, seed=1),
            target.randn(case.keys, kv_heads, case.head_dim, seed=2),
            target.randn(case.keys, kv_heads, case.head_dim, seed=3),
        )
    rows = max(case.queries, case.keys)
    fused = target.randn(rows, (heads + 2 * kv_heads) * case.head_dim, seed=4)
    parts = fused.split([n * case.head_dim for n in (heads, kv_heads, kv_heads)], dim=1)
    q, k, v = (part.view(rows, -1, case.head_dim) for part in parts)
    return q[: case.queries], k[: case.keys], v[: case.keys]


def check_attention(
    target: Target, implementation: Implementation, case: AttentionCase
) -> dict[str, float]:
    """Compare one call with float64.

    Raises:
        CheckFailed: output or log-sum-exp is off, or an input was changed.
    """
    q, k, v = inputs(target, case)
    if case.strided and q.is_contiguous() and case.queries > 1:
        raise CheckFailed("the case is not strided")
    scale = case.head_dim**-0.5
    before = q.clone()
    out, lse = attend_with(implementation, q, k, v, causal=case.causal, scale=scale)
    expected, expected_lse = reference_attention(q, k, v, causal=case.causal, scale=scale)
    if not torch.equal(q, before):
        raise CheckFailed("the queries were changed")
    if out.dtype != q.dtype or lse.dtype != torch.float32:
        raise CheckFailed(f"output is {out.dtype}, log-sum-exp {lse.dtype}")
    return {
        "out off by": within("output", out, expected, target.tolerance),
        "lse off by": within("log-sum-exp", lse, expected_lse, LSE_TOLERANCE, unit=1.0),
    }


def spread(values: torch.Tensor) -> float:
    """Root mean square: the size of a typical value, 1 where all are zero."""
    return float(values.double().square().mean().sqrt()) or 1.0


def within(
    what: str,
    found: torch.Tensor,
    expected: torch.Tensor,
    tolerance: float,
    *,
    unit: float | None = None,
) -> float:
    """The largest error, each over its expected size plus ``unit``, by default their spread.

    (Attention to thousands of keys gives small values: in units of 1 even zeros would be near.)

    Raises:
        CheckFailed: it is above ``tolerance``, NaN, or infinite where the other is not.
    """
    if found.shape != expected.shape:
        raise CheckFailed(f"{what} is {tuple(found.shape)}, not {tuple(expected.shape)}")
    same = found == expected  # infinities of one sign among them
    unit = spread(expected) if unit is None else unit
    gap = (found.double() - expected.double()).abs() / (unit + expected.double().abs())
    worst = float(gap.masked_fill(same, 0.0).max()) if gap.numel() else 0.0
    if not worst <= tolerance:
        raise CheckFailed(f"{what} is off by {worst:.3g}, more than {tolerance:.3g}")
    return worst


def merge_inputs(target: Target, case: MergeCase) -> tuple[torch.Tensor, torch.Tensor]:
    """States of which a third of the rows saw no key; those hold NaN."""
    draw = target.generator(case.states)
    size = (case.states, case.tokens, case.heads)
    outs = torch.randn(*size, case.dim, generator=draw, device=target.device).to(case.dtype)
    lses = torch.randn(size, generator=draw, device=target.device) * 20
    unseen = torch.rand(size, generator=draw, device=target.device) < 1 / 3
    return outs.masked_fill(unseen[..., None], math.nan), lses.masked_fill(unseen, -math.inf)


def merged_exactly(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The merge in float64, straight from its definition."""
    lse = torch.logsumexp(lses.double(), dim=0)
    weights = torch.exp(lses.double() - lse).nan_to_num(0.0)
    values = torch.where(weights[..., None] > 0, outs.double(), 0.0)
    return (weights[..., None] * values).sum(0), lse


def check_merge_states(
    target: Target, case: MergeCase, merge: MergeStates = merge_states
) -> dict[str, float]:
    """Compare a merge of all states at once with float64."""
    outs, lses = merge_inputs(target, case)
    out, lse = merge(outs, lses)
    return _compared(case, out, lse, outs, lses)


def check_merge_into(
    target: Target, case: MergeCase, merge: Callable[..., None] = merge_into
) -> dict[str, float]:
    """Compare merges one by one, also of some rows of the running state, with float64."""
    outs, lses = merge_inputs(target, case)
    shape = outs.shape[1:]
    running = torch.zeros(shape, device=target.device)
    running_lse = torch.full(shape[:2], -math.inf, device=target.device)
    half = case.tokens // 2
    for out, lse in zip(outs, lses, strict=True):
        for rows in (slice(half), slice(half, None)):
            merge(running[rows], running_lse[rows], out[rows], lse[rows])
    return _compared(case, running, running_lse, outs, lses)


def check_merge_far(target: Target) -> dict[str, float]:
    """A merge of more than 2**31 elements, whose last rows a 32-bit index would miss."""
    tokens, heads, dim = (64, 4, 128) if target.small else (150_000, 64, 128)
    case = MergeCase(2, tokens, heads, dim, target.dtype)
    outs = torch.zeros((2, tokens, heads, dim), dtype=target.dtype, device=target.device)
    lses = torch.zeros((2, tokens, heads), device=target.device)
    tail = replace(case, tokens=32)
    outs[:, -32:], lses[:, -32:] = merge_inputs(target, tail)
    out, lse = merge_states(outs, lses)
    found = _compared(tail, out[-32:], lse[-32:], outs[:, -32:], lses[:, -32:])
    return {"elements": float(outs.numel()), **found}


def _compared(
    case: MergeCase,
    out: torch.Tensor,
    lse: torch.Tensor,
    outs: torch.Tensor,
    lses: torch.Tensor,
) -> dict[str, float]:
    expected, expected_lse = merged_exactly(outs, lses)
    rounding = 1e-2 if out.dtype == torch.bfloat16 else 1e-4
    return {
        "out off by": within("merged output", out, expected, rounding),
        "lse off by": within("merged log-sum-exp", lse, expected_lse, 1e-5, unit=1.0),
    }


def checks(target: Target) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work of every check of the step."""
    for merge in merge_cases(target.small):
        yield f"merge_states, {merge}", partial(check_merge_states, target, merge)
        yield f"merge_into, {merge}", partial(check_merge_into, target, merge)
    yield "merge_states beyond 32-bit indices", partial(check_merge_far, target)
    for case in attention_cases(target.small):
        for one in usable(target, case.head_dim):
            yield f"{one.name}, {case}", partial(check_attention, target, one, case)


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""
    for name, work in checks(target):
        recorder.check(name, work)
    recorder.check("implementations", lambda: found_implementations(target))


def found_implementations(target: Target) -> dict[str, str]:
    """Which implementations were checked.

    Raises:
        CheckFailed: FlashInfer or torch's flash attention cannot be used on this GPU.
    """
    names = {dim: [one.name for one in usable(target, dim)] for dim in (64, 128, 256)}
    wanted = {"flashinfer", "torch-cuda-flash"} if target.cuda else {"torch-cpu-flash"}
    for dim, found in names.items():
        if missing := wanted - set(found):
            raise CheckFailed(f"head dimension {dim}: {sorted(missing)} cannot be used here")
    return {str(dim): ", ".join(found) for dim, found in names.items()}
