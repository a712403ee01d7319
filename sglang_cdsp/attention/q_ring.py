"""Attention over an SP group with history, Q circulating: for short chunks on a long history.

Each member sends its queries to the others and computes for theirs what it holds; partial results
go straight back to their owner, who merges them one by one. No KV moves. After "Context
Parallelism for Scalable Million-Token Inference" (arXiv 2411.01783), whose pass-Q sends queries
around the ring; here they go directly, so that members need not wait for each other in turn, and
only rows that the other side can serve are sent. At most two members' queries and two answers are
in memory at a time, whatever the size of the group.
"""

from __future__ import annotations

from collections import deque

import torch

from sglang_cdsp.attention.blocks import check_rows
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.steps import QRing, QStep, note_of
from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable

__all__ = ["PARTIAL_TAG", "Q_TAG", "q_ring_attention"]

Q_TAG = 3
PARTIAL_TAG = 4
_GUESTS = 2
"""Exchanges of queries that are under way at once: one is served while the other travels."""


def q_ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_history: torch.Tensor,
    v_history: torch.Tensor,
    layout: RingLayout,
    links: Exchanger | None,
    *,
    scale: float,
    ring: QRing | None = None,
    layer: int = 0,
    pacing: Pacing = UNPACED,
) -> torch.Tensor:
    """Compute the same as ``ring_attention``, with the same arguments, moving Q instead of KV.

    Partial results travel in the dtype of ``q``, which is what partial attention gives.

    Distance by distance everyone sends that far ahead and receives from as far behind, so both
    sides of a pair post their messages in one order. Nobody waits for more than who has served the
    fewest distances can give, so it ends.
    """
    check_rows(q, k, v, k_history, v_history, layout, links)
    steps = (ring or QRing.of(layout)).steps
    value_dim = v.shape[2]

    def ask(number: int, links: Exchanger) -> tuple[torch.Tensor, Waitable]:
        step = steps[number]
        guest = q.new_empty((step.guest_rows, *q.shape[1:]))
        work = links.exchange(
            [Message(q[step.wanted].contiguous(), step.ahead, Q_TAG)],
            [Message(guest, step.behind, Q_TAG)],
            note_of(layer, number + 1),
        )
        return guest, work

    guests: deque[tuple[torch.Tensor, Waitable]] = deque()
    if links is not None:
        guests.extend(ask(number, links) for number in range(min(_GUESTS, len(steps))))
    state = RunningState(q, value_dim, scale, pacing)
    state.attend(k_history, v_history, causal=False)
    state.attend(k, v, causal=True)
    if links is None:
        return state.result()

    answers: deque[tuple[QStep, torch.Tensor, Waitable]] = deque()
    for number, step in enumerate(steps):
        pacing.boundary()
        guest, work = guests.popleft()
        work.wait()
        partial = _serve(guest, step, k, v, k_history, v_history, scale, pacing)
        answer = _empty_answer(step.wanted_rows, q.shape[1], value_dim, q)
        work = links.exchange(
            [Message(_packed(partial, q.dtype), step.behind, PARTIAL_TAG)],
            [Message(answer, step.ahead, PARTIAL_TAG)],
            note_of(layer, number + 1),
        )
        answers.append((step, answer, work))
        del guest, partial
        if number + _GUESTS < len(steps):
            guests.append(ask(number + _GUESTS, links))
        if len(answers) == _GUESTS:
            _merge(state, *answers.popleft(), q)
    while answers:
        _merge(state, *answers.popleft(), q)
    return state.result()


def _merge(
    state: RunningState, step: QStep, answer: torch.Tensor, work: Waitable, like: torch.Tensor
) -> None:
    """Wait for an answer and merge it."""
    work.wait()
    if step.wanted_rows:
        heads, value_dim = state.out.shape[1:]
        lse, out = _unpacked(answer, step.wanted_rows, heads, value_dim, like)
        state.merge(out, lse, rows=step.wanted)


def _serve(
    guest: torch.Tensor,
    step: QStep,
    k: torch.Tensor,
    v: torch.Tensor,
    k_history: torch.Tensor,
    v_history: torch.Tensor,
    scale: float,
    pacing: Pacing,
) -> RunningState:
    """Attend the queries that came to what this member holds."""
    state = RunningState(guest, v.shape[2], scale, pacing)
    state.attend(k_history, v_history, causal=False)
    for part in step.parts:
        chunk_keys = part.keys - k_history.shape[0]
        state.attend(
            k[:chunk_keys],
            v[:chunk_keys],
            causal=False,
            rows=slice(part.first, part.last),
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
