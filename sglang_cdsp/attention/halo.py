"""The rows just before each piece of a chunk, from whoever holds them.

A query of a window layer sees nothing before its window, so no block goes around the ring: each
member gets the rows that lie ahead of its pieces within the reach of their queries, its *halo*, and
has then all that its queries see. Both ends read off the chunk's layout which rows that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.reach import Reach
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.attention.steps import note_of
from sglang_cdsp.parallel.links.types import Exchanger, Message
from sglang_cdsp.parallel.spans import Span

HALO_TAG = 5


@dataclass(frozen=True)
class HaloStep:
    """What a member gives to one partner and takes from another.

    Attributes:
        ahead, behind: whom it gives to, whom it takes from; by instance.
        give: rows of its own block, int64.
        take: how many rows come.
    """

    ahead: int
    behind: int
    give: torch.Tensor
    take: int


@dataclass(frozen=True)
class Halo:
    """The exchange of halos in layers of one reach, as one member makes it.

    Attributes:
        steps: by distance.
        positions: prompt positions of the own block's rows and then of what comes, int64.
    """

    steps: tuple[HaloStep, ...]
    positions: torch.Tensor

    @property
    def rows(self) -> int:
        """Rows that come."""
        return sum(step.take for step in self.steps)

    @classmethod
    def of(
        cls,
        layout: RingLayout,
        history: Sequence[Sequence[Span]],
        reach: Reach,
        device: torch.device,
    ) -> Halo:
        """Work it out.

        Args:
            layout: the chunk.
            history: by member, the spans of the history that it holds, in the order of its rows.
            reach: what a query sees.
            device: of the row numbers.

        Raises:
            AttentionError: the spans are not those of the layout.
        """
        held = [positions_of([*history[m], *layout.pieces[m]]) for m in range(layout.size)]
        if any(len(held[m]) != layout.block_rows(m) for m in range(layout.size)):
            raise AttentionError(
                f"the spans of the history {list(history)} are not the {layout.history_tokens} "
                "tokens that the layout has: pass those that are held while the chunk runs"
            )
        steps = []
        where = [held[layout.me]]
        for distance in range(1, layout.size):
            ahead = (layout.me + distance) % layout.size
            behind = (layout.me - distance) % layout.size
            give = _ahead_of(held[layout.me], layout.pieces[ahead], reach)
            take = _ahead_of(held[behind], layout.pieces[layout.me], reach)
            steps.append(
                HaloStep(
                    layout.group[ahead],
                    layout.group[behind],
                    give.nonzero().flatten().to(device),
                    int(take.sum()),
                )
            )
            where.append(held[behind][take])
        return cls(tuple(steps), torch.cat(where))


def exchange(
    halo: Halo,
    buffers: Sequence[torch.Tensor],
    slots: torch.Tensor,
    links: Exchanger | None,
    layer: int,
) -> list[torch.Tensor]:
    """Give and take the halos of one layer; all members call it.

    Args:
        halo: the steps.
        buffers: the layer's pool, ``[slots, ...]`` each.
        slots: of the own block's rows, int64.
        links: to the group; None will do for a group of one.
        layer: which layer this is, so that rows of another one are noticed.

    Returns:
        The rows that came, step by step, ``[halo.rows, ...]`` of each buffer.

    Raises:
        LinkError: a partner is gone.
    """
    widths = [buffer[0].numel() for buffer in buffers]
    landings = [buffer.new_empty((halo.rows, *buffer.shape[1:])) for buffer in buffers]
    works, first = [], 0
    for number, step in enumerate(halo.steps):
        sends, recvs = [], []
        arriving: list[torch.Tensor] = []
        if step.give.numel():
            given = [buffer.index_select(0, slots[step.give]).view(-1) for buffer in buffers]
            sends.append(Message(torch.cat(given), step.ahead, HALO_TAG))
        if step.take:
            message = buffers[0].new_empty(step.take * sum(widths))
            arriving = list(message.split([step.take * width for width in widths]))
            recvs.append(Message(message, step.behind, HALO_TAG))
        if links is not None and (sends or recvs):
            works.append(
                (links.exchange(sends, recvs, note_of(layer, number)), arriving, first, step.take)
            )
        first += step.take
    for work, arriving, start, rows in works:
        work.wait()
        if rows:
            for landing, part in zip(landings, arriving, strict=True):
                landing[start : start + rows] = part.view(rows, *landing.shape[1:])
    return landings


def halo_rows(layout: RingLayout, history: Sequence[Sequence[Span]], reach: Reach) -> int:
    """Rows that one layer of a reach puts on the wire, all members together."""
    held = [positions_of([*history[m], *layout.pieces[m]]) for m in range(layout.size)]
    return sum(
        int(_ahead_of(held[holder], layout.pieces[member], reach).sum())
        for member in range(layout.size)
        for holder in range(layout.size)
        if holder != member
    )


def positions_of(spans: Sequence[Span]) -> torch.Tensor:
    """Prompt positions of the spans in their order, int64 ``[tokens]``."""
    parts = [torch.arange(span.start, span.stop) for span in spans]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _ahead_of(held: torch.Tensor, pieces: Sequence[Span], reach: Reach) -> torch.Tensor:
    """Which of the positions lie before a piece, within the reach of its first query; bool."""
    found = torch.zeros_like(held, dtype=torch.bool)
    for piece in pieces:
        found |= (held < piece.start) & (held >= reach.first(piece.start))
    return found
