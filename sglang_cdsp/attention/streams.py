"""Exchanges of one layer as streams: what is at hand, while the next one is on its way.

Whoever computes takes what a stream gives and never waits itself. What is exchanged follows from
the chunk's layout alone, so it is alike at all members and at all ranks of an instance, and comes
in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch

from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.steps import KvRing, KvStep, note_of
from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable
from sglang_cdsp.parallel.spans import Span

RING_TAG = 1
PASS_TAG = 6


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


def pass_on(
    layout: RingLayout,
    state: torch.Tensor,
    links: Exchanger | None,
    *,
    layer: int,
    pacing: Pacing,
) -> Generator[tuple[Span, torch.Tensor], torch.Tensor, None]:
    """Give each piece of this member the state before it, in token order, and take the one after.

    For layers that keep a state of fixed size over the prompt. A piece waits for the one before it,
    whoever computes that; nothing is sent between neighbours at one member.

    Example:
        >>> stream = pass_on(layout, state, lane, layer=0, pacing=UNPACED)
        >>> piece, before = next(stream)
        >>> while True:
        >>>     after = run(piece, before)
        >>>     try: piece, before = stream.send(after)
        >>>     except StopIteration: break

    Args:
        layout: who computes which piece.
        state: before the chunk, contiguous, at home; elsewhere a tensor of the same shape, whose
            content means nothing. Home computes the last piece, so it has the state after the chunk
            too.
        links: to the group; None will do for a group of one.
        layer: which layer this is, so that a state of another one is noticed.
        pacing: where others may run meanwhile.

    Raises:
        LinkError: a partner is gone.
    """
    home = 0
    order = sorted((piece, member) for member, own in enumerate(layout.pieces) for piece in own)
    members = [home, *(member for _, member in order)]
    sent: list[Waitable] = []

    def send(number: int) -> None:
        """Send the state on to the piece ``number``, if that is somebody else's."""
        if number < len(order) and members[number + 1] != layout.me and links is not None:
            peer = layout.group[members[number + 1]]
            message = Message(state.contiguous(), peer, PASS_TAG)
            sent.append(links.exchange([message], [], note_of(layer, number)))

    if layout.me == home:
        # In a chunk of a few pages the first pieces may be empty, and home's with them.
        send(0)
    for number, (piece, member) in enumerate(order):
        if member != layout.me:
            continue
        before = members[number]
        if before != member and links is not None:
            state = torch.empty_like(state)
            incoming = Message(state, layout.group[before], PASS_TAG)
            links.exchange([], [incoming], note_of(layer, number)).wait()
        state = yield piece, state
        pacing.boundary()
        send(number + 1)
    for work in sent:
        work.wait()
