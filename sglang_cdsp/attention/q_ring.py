"""Attention over an SP group with history, Q circulating: for short chunks on a long history.

Each member sends its queries to the others and computes for theirs what it holds; partial results
go straight back to their owner, who merges them all at once. No KV moves. After "Context
Parallelism for Scalable Million-Token Inference" (arXiv 2411.01783), whose pass-Q sends queries
around the ring; here they go directly, so that members need not wait for each other in turn, and
only rows that the other side can serve are sent.
"""

from __future__ import annotations

import math

import torch

from sglang_cdsp.attention.blocks import check_rows
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.kernels.merge import merge_states
from sglang_cdsp.parallel.mesh import Mesh, Message, Work

__all__ = ["PARTIAL_TAG", "Q_TAG", "q_ring_attention"]

Q_TAG = 3
PARTIAL_TAG = 4


def q_ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_history: torch.Tensor,
    v_history: torch.Tensor,
    layout: RingLayout,
    mesh: Mesh | None,
    *,
    scale: float,
) -> torch.Tensor:
    """Compute the same as ``ring_attention``, with the same arguments, moving Q instead of KV.

    Partial results travel in the dtype of ``q``, which is what partial attention gives.
    """
    check_rows(q, k, v, k_history, v_history, layout, mesh)
    if mesh is None or layout.size == 1:
        return _own_part(q, k, v, k_history, v_history, scale).result()
    me, size = layout.me, layout.size
    heads, value_dim = q.shape[1], v.shape[2]

    # Distance by distance everyone sends that far ahead and receives from as far behind: the
    # order is the same everywhere, as NCCL needs it.
    guests: list[tuple[torch.Tensor, Work]] = []
    for distance in range(1, size):
        ahead, behind = (me + distance) % size, (me - distance) % size
        wanted = layout.visible_rows(me, ahead)
        guest = q.new_empty((len(layout.visible_rows(behind, me)), *q.shape[1:]))
        mine = q[wanted.start : wanted.stop].contiguous()
        work = mesh.exchange(
            [Message(mine, layout.group[ahead], Q_TAG)],
            [Message(guest, layout.group[behind], Q_TAG)],
        )
        guests.append((guest, work))

    own = _own_part(q, k, v, k_history, v_history, scale)

    answers: list[tuple[range, torch.Tensor, Work]] = []
    for distance, (guest, work) in enumerate(guests, start=1):
        ahead, behind = (me + distance) % size, (me - distance) % size
        work.wait()
        partial = _serve(guest, behind, k, v, k_history, v_history, layout, scale)
        wanted = layout.visible_rows(me, ahead)
        answer = _empty_answer(len(wanted), heads, value_dim, q)
        work = mesh.exchange(
            [Message(_packed(partial, q.dtype), layout.group[behind], PARTIAL_TAG)],
            [Message(answer, layout.group[ahead], PARTIAL_TAG)],
        )
        answers.append((wanted, answer, work))

    outs = own.out.new_zeros((size, *own.out.shape))
    lses = torch.full_like(own.lse, -math.inf).repeat(size, 1, 1)
    outs[0], lses[0] = own.out, own.lse
    for place, (wanted, answer, work) in enumerate(answers, start=1):
        work.wait()
        rows = slice(wanted.start, wanted.stop)
        lses[place, rows], outs[place, rows] = _unpacked(answer, len(wanted), heads, value_dim, q)
    return merge_states(outs, lses)[0].to(q.dtype)


def _own_part(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_history: torch.Tensor,
    v_history: torch.Tensor,
    scale: float,
) -> RunningState:
    state = RunningState(q, v.shape[2], scale)
    state.attend(k_history, v_history, causal=False)
    state.attend(k, v, causal=True)
    return state


def _serve(
    guest: torch.Tensor,
    owner: int,
    k: torch.Tensor,
    v: torch.Tensor,
    k_history: torch.Tensor,
    v_history: torch.Tensor,
    layout: RingLayout,
    scale: float,
) -> RunningState:
    """Attend the queries that ``owner`` sent to what this member holds."""
    state = RunningState(guest, v.shape[2], scale)
    state.attend(k_history, v_history, causal=False)
    first = layout.visible_rows(owner, layout.me).start
    for part in layout.visible(owner, layout.me):
        chunk_keys = part.keys - k_history.shape[0]
        state.attend(
            k[:chunk_keys],
            v[:chunk_keys],
            causal=False,
            rows=slice(part.first - first, part.last - first),
        )
    return state


def _lse_bytes(rows: int, heads: int) -> int:
    return rows * heads * torch.float32.itemsize


def _empty_answer(rows: int, heads: int, value_dim: int, like: torch.Tensor) -> torch.Tensor:
    size = _lse_bytes(rows, heads) + rows * heads * value_dim * like.element_size()
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _unpacked(
    answer: torch.Tensor, rows: int, heads: int, value_dim: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-sum-exp ``[rows, heads]`` and output ``[rows, heads, Dv]`` as views."""
    border = _lse_bytes(rows, heads)
    return (
        answer[:border].view(torch.float32).view(rows, heads),
        answer[border:].view(like.dtype).view(rows, heads, value_dim),
    )


def _packed(state: RunningState, dtype: torch.dtype) -> torch.Tensor:
    """Put log-sum-exp (float32) and output (``dtype``) into one message of bytes."""
    rows, heads, value_dim = state.out.shape
    like = state.out.new_empty(0, dtype=dtype)
    message = _empty_answer(rows, heads, value_dim, like)
    lse, out = _unpacked(message, rows, heads, value_dim, like)
    lse.copy_(state.lse)
    out.copy_(state.out)
    return message
