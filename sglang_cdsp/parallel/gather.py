"""Brings the KV of a whole prompt to the instance that will decode it, while its last chunk runs.

Where KV circulates in that chunk, every block comes past home, which keeps it and needs nothing
more (LoongServe, section 4.2, "proactive scale-down"; ``attention/ring.py``). Where Q circulates,
what the other members hold of a layer leaves when that layer's attention is over, and travels while
the next layer is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sglang_cdsp.parallel.chunk_layout import ChunkLayout
from sglang_cdsp.parallel.links.types import Exchanger
from sglang_cdsp.parallel.moves import MoveHandle, start_moves
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.rebalancer import LayerBuffers, rows_of_layer
from sglang_cdsp.parallel.spans import Move, Span


def moves_to_home(layout: ChunkLayout, reused: int = 0) -> tuple[Move, ...]:
    """What home lacks of the prompt while the plan's last chunk runs, from whoever holds it.

    History that leaves home before this chunk is there still, and is not sent back. So is the
    prefix of ``reused`` tokens that home has cached, whoever else holds it by now.
    """
    home = layout.group[0]
    leaving = [move.span for move in layout.moves if move.src == home]
    there = [*leaving, Span(0, reused)] if reused else leaving
    return tuple(
        Move(holder, home, part)
        for holder, history, own in zip(layout.group, layout.history, layout.spans, strict=True)
        if holder != home
        for span in (*history, *own)
        for part in without(span, there)
    )


def without(span: Span, removed: Sequence[Span]) -> tuple[Span, ...]:
    """The parts of ``span`` that are in none of ``removed``, ascending."""
    parts, start = [], span.start
    for other in sorted(removed):
        if other.stop <= start or other.start >= span.stop:
            continue
        if other.start > start:
            parts.append(Span(start, other.start))
        start = other.stop
    if start < span.stop:
        parts.append(Span(start, span.stop))
    return tuple(parts)


class Gather:
    """The moves of one prompt's KV to its home on one member, a layer behind the computation."""

    def __init__(
        self,
        *,
        pool: LayerBuffers,
        moves: Sequence[Move],
        instance: int,
        slots_of: Callable[[Span], torch.Tensor],
        links: Exchanger,
        ranks: Ranks = ALONE,
    ) -> None:
        """Send and receive nothing yet.

        Args:
            pool: KV of this instance.
            moves: from ``moves_to_home``, the same at every member.
            instance: this one.
            slots_of: pool rows of a span here, see ``start_moves``.
            links: to the others.
            ranks: of this instance, see ``start_moves``.
        """
        self._pool = pool
        self._moves = moves
        self._instance = instance
        self._slots_of = slots_of
        self._links = links
        self._ranks = ranks
        self._running: MoveHandle | None = None
        self._layer = -1

    @property
    def pending(self) -> int | None:
        """The layer that was started and is not known to be there yet, None for none."""
        return None if self._running is None else self._layer

    def after_attention(self, layer: int) -> None:
        """The layer's KV is in the pool of every holder as soon as that comes here.

        Raises:
            LinkError: a partner is gone.
        """
        # One layer at a time: more would pile up in front of a slower partner.
        self.finish()
        self._layer = layer
        self._running = start_moves(
            rows_of_layer(self._pool, layer),
            self._moves,
            self._instance,
            self._slots_of,
            self._links,
            note=layer,
            ranks=self._ranks,
        )

    def finish(self) -> None:
        """Return when what was started has left, and lies at home in the pool.

        Raises:
            LinkError: a partner is gone.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.wait()
