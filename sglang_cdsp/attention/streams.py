"""Exchanges of one layer as streams: what is at hand, while the next one is on its way.

Whoever computes takes what a stream gives and never waits itself. What is exchanged follows from
the chunk's layout alone, so it is alike at all members and at all ranks of an instance, and comes
in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.steps import KvRing, KvStep, note_of
from sglang_cdsp.parallel.links.types import Exchanger, Message

RING_TAG = 1


@dataclass(frozen=True)
class Passing:
    """What is at hand in one step of a ring.

    Attributes:
        number: the step; in step 0 it is the member's own block.
        step: what the member does in it.
        message: the block as it travels; None where nothing comes, or nobody needs the own one.
    """

    number: int
    step: KvStep
    message: torch.Tensor | None


def circulate(
    ring: KvRing,
    message: torch.Tensor | None,
    empty: Callable[[int], torch.Tensor],
    links: Exchanger | None,
    *,
    layer: int,
    pacing: Pacing,
) -> Iterator[Passing]:
    """Give the blocks of a group one after the other, the own one first.

    While one is at hand it travels on, and the next one comes. Two blocks are in memory at a time,
    if the caller keeps none.

    Args:
        ring: the steps.
        message: the own block, contiguous; None where no other member needs it.
        empty: an unfilled message for so many rows.
        links: to the group; None will do for a group of one.
        layer: which layer this is, so that a block of another one is noticed.
        pacing: where others may run meanwhile.

    Raises:
        LinkError: a partner is gone.
    """
    for number, step in enumerate(ring.steps):
        if number:
            pacing.boundary()
        following = empty(step.receive_rows) if step.receive_rows else None
        sends: list[Message] = []
        recvs: list[Message] = []
        if step.send and message is not None:
            sends.append(Message(message, ring.successor, RING_TAG))
        if following is not None:
            recvs.append(Message(following, ring.predecessor, RING_TAG))
        work = None
        if links is not None and (sends or recvs):
            work = links.exchange(sends, recvs, note_of(layer, number))
        yield Passing(number, step, message)
        if work is not None:
            work.wait()
        message = following
