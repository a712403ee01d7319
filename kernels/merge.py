"""Merging of attention states: Triton kernels, with the plain-torch reference where there is none.

The formulas are in ``merge_reference``. Each program handles a tile of (token, head) rows, as many
as fill about ``_TILE`` elements, so that short rows do not leave it idle.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from .merge_reference import merge_into_reference, merge_states_reference

__all__ = ["merge_into", "merge_states"]

_TILE = 2048
# Triton reads this when a kernel is defined, that is now; later changes have no effect there.
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def merge_states(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge ``n`` attention states over disjoint keys into the state over all of them.

    On CUDA (or under ``TRITON_INTERPRET=1``) one kernel launch; elsewhere plain torch.

    Args:
        outs: ``[n, T, H, D]``, any float dtype, n at least 1.
        lses: ``[n, T, H]``, float32, natural logarithms; ``-inf`` for a state over no keys, whose
            ``outs`` rows are not read.

    Returns:
        ``(out [T, H, D] in the dtype of outs, lse [T, H] float32)``; computed in float32. A row
        without any keys is zeros and ``-inf``.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Example:
        >>> out, lse = merge_states(torch.stack([out_a, out_b]), torch.stack([lse_a, lse_b]))
    """
    if outs.dim() != 4 or outs.shape[:3] != lses.shape or outs.shape[0] == 0:
        raise ValueError(
            f"outs are [n, T, H, D] and lses [n, T, H] with n at least 1, not {tuple(outs.shape)} "
            f"and {tuple(lses.shape)}"
        )
    _check_lse(lses)
    if not _has_kernel(outs):
        return merge_states_reference(outs, lses)
    outs, lses = outs.contiguous(), lses.contiguous()
    states, tokens, heads, dim = outs.shape
    rows = tokens * heads
    out, lse = outs.new_empty((tokens, heads, dim)), lses.new_empty((tokens, heads))
    if rows and dim:
        columns, tile_rows = _tile(dim)
        _merge_states_kernel[(triton.cdiv(rows, tile_rows),)](
            outs, lses, out, lse, states, rows, DIM=dim, COLUMNS=columns, ROWS=tile_rows
        )
    return out, lse


def merge_into(
    out: torch.Tensor, lse: torch.Tensor, other_out: torch.Tensor, other_lse: torch.Tensor
) -> None:
    """Merge a state into a running one, in place.

    On CUDA (or under ``TRITON_INTERPRET=1``) one kernel launch; elsewhere plain torch.

    Args:
        out: ``[T, H, D]``, float32, contiguous, changed.
        lse: ``[T, H]``, float32, contiguous, changed. ``-inf`` for rows that have seen no key
            yet; their ``out`` must be finite.
        other_out: ``[T, H, D]``, any float dtype.
        other_lse: ``[T, H]``, float32; ``-inf`` rows are skipped.

    Raises:
        ValueError: shapes, dtypes or strides that do not fit.
    """
    if out.shape != other_out.shape or not lse.shape == other_lse.shape == out.shape[:2]:
        raise ValueError(
            "out and other_out are [T, H, D], lse and other_lse [T, H], not "
            f"{[tuple(x.shape) for x in (out, other_out, lse, other_lse)]}"
        )
    _check_lse(lse, other_lse)
    if out.dtype != torch.float32 or not (out.is_contiguous() and lse.is_contiguous()):
        raise ValueError("the running state is changed in place: keep it float32 and contiguous")
    if not _has_kernel(out):
        merge_into_reference(out, lse, other_out, other_lse)
        return
    tokens, heads, dim = out.shape
    rows = tokens * heads
    if rows and dim:
        columns, tile_rows = _tile(dim)
        _merge_into_kernel[(triton.cdiv(rows, tile_rows),)](
            out,
            lse,
            other_out.contiguous(),
            other_lse.contiguous(),
            rows,
            DIM=dim,
            COLUMNS=columns,
            ROWS=tile_rows,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _merge_states_kernel(  # type: ignore[no-untyped-def]  # Triton reads these as its own types
    outs,
    lses,
    out,
    lse,
    states,
    rows,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    # int64: n * T * H * D passes 2**31 at lengths that this is made for.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    tile = row[:, None] * DIM + column[None, :]
    tile_inside = inside[:, None] & (column < DIM)[None, :]
    lse_step = tl.cast(rows, tl.int64)
    out_step = lse_step * DIM

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for state in range(states):
        top = tl.maximum(top, tl.load(lses + state * lse_step + row, inside, float("-inf")))
    top = tl.where(top == float("-inf"), 0.0, top)

    total = tl.zeros((ROWS,), tl.float32)
    merged = tl.zeros((ROWS, COLUMNS), tl.float32)
    for state in range(states):
        weight = tl.exp(tl.load(lses + state * lse_step + row, inside, float("-inf")) - top)
        # States without keys are not read: their rows may hold anything, NaN too.
        seen = tile_inside & (weight > 0.0)[:, None]
        part = tl.load(outs + state * out_step + tile, seen, 0.0).to(tl.float32)
        merged += weight[:, None] * part
        total += weight

    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    tl.store(out + tile, (merged / total[:, None]).to(out.dtype.element_ty), tile_inside)
    tl.store(lse + row, tl.where(empty, float("-inf"), top + tl.log(total)), inside)


@triton.jit  # type: ignore[untyped-decorator]
def _merge_into_kernel(  # type: ignore[no-untyped-def]  # Triton reads these as its own types
    out,
    lse,
    other_out,
    other_lse,
    rows,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    tile = row[:, None] * DIM + column[None, :]
    tile_inside = inside[:, None] & (column < DIM)[None, :]

    mine = tl.load(lse + row, inside, 0.0)
    theirs = tl.load(other_lse + row, inside, float("-inf"))
    unseen = theirs == float("-inf")
    gap = tl.where(unseen, float("-inf"), theirs - mine)
    weight = tl.sigmoid(gap)[:, None]

    seen = tile_inside & (theirs != float("-inf"))[:, None]
    running = tl.load(out + tile, seen, 0.0)
    part = tl.load(other_out + tile, seen, 0.0).to(tl.float32)
    tl.store(out + tile, running + weight * (part - running), seen)
    # -logsigmoid(|gap|) in full: the larger of the two plus a bounded term.
    tl.store(lse + row, tl.maximum(mine, theirs) + tl.log(1.0 + tl.exp(-tl.abs(gap))), inside)


def _tile(dim: int) -> tuple[int, int]:
    """Return columns and rows of a tile: powers of two, about ``_TILE`` elements."""
    columns = triton.next_power_of_2(dim)
    return columns, max(1, _TILE // columns)


def _has_kernel(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda or (_INTERPRETED and tensor.device.type == "cpu")


def _check_lse(*lses: torch.Tensor) -> None:
    if any(lse.dtype != torch.float32 for lse in lses):
        raise ValueError("log-sum-exps are float32: in fewer bits their merge loses whole digits")
