"""Attention over an SP group with history, Q circulating: for short chunks on a long history.

Each member sends its queries to the others and computes for theirs what it holds; partial results
go straight back to their owner, who merges them one by one. No KV moves. After "Context
Parallelism for Scalable Million-Token Inference" (arXiv 2411.01783), whose pass-Q sends queries
around the ring; here they go directly, so that members need not wait for each other in turn, and
only rows that the other side can serve are sent. At most ``GUESTS`` members' queries, as many
answers to them and as many to the own queries are in memory at a time, whatever the size of the
group.
"""

from __future__ import annotations

from collections import deque

import torch

from sglang_cdsp.attention.answers import Answer
from sglang_cdsp.attention.blocks import Block, check_rows
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.steps import QRing, QStep, note_of
from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable

__all__ = ["GUESTS", "PARTIAL_TAG", "Q_TAG", "q_ring_attention"]

Q_TAG = 3
PARTIAL_TAG = 4
GUESTS = 2
"""Exchanges of queries, and of answers, that are under way at once: one is served while the other
travels."""


def q_ring_attention(
    q: torch.Tensor,
    block: Block,
    layout: RingLayout,
    links: Exchanger | None,
    *,
    scale: float,
    ring: QRing | None = None,
    layer: int = 0,
    pacing: Pacing = UNPACED,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the same as ``ring_attention``, with the same arguments, moving Q instead of KV.

    Partial results travel in the dtype of ``q``, which is what partial attention gives. Answers
    are merged in the order of distance, so that the sum is the same in every run.

    Distance by distance everyone sends that far ahead and receives from as far behind, so both
    sides of a pair post their messages in one order. Nobody waits for more than who has served the
    fewest distances can give, so it ends.
    """
    check_rows(q, block, layout, links)
    steps = (ring or QRing.of(layout)).steps
    value_dim = block.shape.value_dim
    # Copied at most once: rows of it are then messages as they are.
    queries = q.contiguous() if steps else q

    def ask(number: int, links: Exchanger) -> tuple[torch.Tensor, Waitable]:
        step = steps[number]
        guest = q.new_empty((step.guest_rows, *q.shape[1:]))
        work = links.exchange(
            [Message(queries[step.wanted], step.ahead, Q_TAG)],
            [Message(guest, step.behind, Q_TAG)],
            note_of(layer, number + 1),
        )
        return guest, work

    guests: deque[tuple[torch.Tensor, Waitable]] = deque()
    if links is not None:
        guests.extend(ask(number, links) for number in range(min(GUESTS, len(steps))))
    state = RunningState(queries, value_dim, scale, pacing)
    block.attend_own(state)
    if links is None:
        return state.result(sinks)

    answers: deque[tuple[QStep, Answer, Waitable]] = deque()
    for number, step in enumerate(steps):
        pacing.boundary()
        guest, work = guests.popleft()
        work.wait()
        served = block.serve(guest, step.parts, scale, pacing)
        answer = Answer.empty(step.wanted_rows, q.shape[1], value_dim, q)
        work = links.exchange(
            [Message(served.message, step.behind, PARTIAL_TAG)],
            [Message(answer.message, step.ahead, PARTIAL_TAG)],
            note_of(layer, number + 1),
        )
        answers.append((step, answer, work))
        del guest, served
        if number + GUESTS < len(steps):
            guests.append(ask(number + GUESTS, links))
        if len(answers) == GUESTS:
            _merge(state, *answers.popleft())
    while answers:
        _merge(state, *answers.popleft())
    return state.result(sinks)


def _merge(state: RunningState, step: QStep, answer: Answer, work: Waitable) -> None:
    """Wait for an answer and merge it."""
    work.wait()
    if step.wanted_rows:
        state.merge(answer.out, answer.lse, rows=step.wanted)
