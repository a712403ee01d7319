"""Moving history between instances, one layer at a time.

Started right after a layer's attention, when the links are free, the next layer's history travels
while this one runs its output projection and MLP (Tetris, section 4, "overlap of balancing").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sglang_cdsp.parallel.errors import LayoutError
from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.spans import Move, Span

MOVE_TAG = 2

SlotsOf = Callable[[Span], torch.Tensor]


@dataclass(frozen=True)
class MoveHandle:
    """The moves of one layer, under way.

    Attributes:
        work: the exchange with all partners.
        arrivals: ``(rows, buffer, landing)``: what came into ``landing`` belongs into these rows
            of this pool buffer, or is this rank's share of it.
        ranks: whose shares make up what came.
    """

    work: Waitable
    arrivals: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]
    ranks: Ranks = ALONE

    def wait(self) -> None:
        """Return when all rows have left and all arrivals lie in the pool. Call it once.

        Raises:
            LinkError: a partner is gone.
        """
        self.work.wait()
        for rows, buffer, landing in self.arrivals:
            buffer.index_copy_(0, rows, self.ranks.whole(landing, rows.numel()))


def start_moves(
    buffers: Sequence[torch.Tensor],
    moves: Sequence[Move],
    instance: int,
    slots_of: SlotsOf,
    links: Exchanger,
    *,
    note: int = 0,
    ranks: Ranks = ALONE,
) -> MoveHandle:
    """Start the moves of one layer that concern this instance: one message to or from each partner.

    The rows to send are copied here, so they may be freed or overwritten from now on; arrivals
    are written by ``MoveHandle.wait``. Where a layer has one buffer all ranks of an instance hold
    the same rows (``rows_of_layer``), and each carries its share.

    Args:
        buffers: the pool of the layer, ``[slots, ...]`` each: K and V, or what else has a row a
            token.
        moves: all moves of the group, the same list at every member, from ``rebalance``.
        instance: this one.
        slots_of: pool rows ``[tokens]``, int64, of a span on this instance: where an outgoing one
            lies, where an incoming one shall.
        links: to the others. Moves of two layers under way at once arrive in the order of starting.
        note: what all members say alike of these moves: the layer, say.
        ranks: of this instance, which all start the same moves.

    Raises:
        LayoutError: ``slots_of`` gives another number of rows than the span has tokens.
        LinkError: a partner is gone.
    """
    if len(buffers) > 1:
        ranks = ALONE
    sends: list[Message] = []
    recvs: list[Message] = []
    arrivals: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for peer in sorted({move.dst for move in moves if move.src == instance} - {instance}):
        rows = _rows([m.span for m in moves if (m.src, m.dst) == (instance, peer)], slots_of)
        rows = rows[ranks.share(rows.numel())]
        message, parts = _message(buffers, rows.numel())
        for buffer, part in zip(buffers, parts, strict=True):
            torch.index_select(buffer, 0, rows, out=part)
        sends.append(Message(message, peer, MOVE_TAG))
    for peer in sorted({move.src for move in moves if move.dst == instance} - {instance}):
        rows = _rows([m.span for m in moves if (m.src, m.dst) == (peer, instance)], slots_of)
        share = ranks.share(rows.numel())
        message, parts = _message(buffers, share.stop - share.start)
        recvs.append(Message(message, peer, MOVE_TAG))
        arrivals += [(rows, buffer, part) for buffer, part in zip(buffers, parts, strict=True)]
    return MoveHandle(links.exchange(sends, recvs, note), tuple(arrivals), ranks)


def _rows(spans: Sequence[Span], slots_of: SlotsOf) -> torch.Tensor:
    parts = []
    for span in spans:
        rows = slots_of(span)
        if rows.numel() != span.tokens:
            raise LayoutError(
                f"{span} has {span.tokens} tokens but slots_of gave {rows.numel()} rows: every "
                "position needs one slot on both sides"
            )
        parts.append(rows)
    return torch.cat(parts)


def _message(buffers: Sequence[torch.Tensor], rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a flat message for ``rows`` rows of each buffer in turn, and views of its parts."""
    sizes = [buffer[0].numel() * rows for buffer in buffers]
    message = buffers[0].new_empty(sum(sizes))
    parts = message.split(sizes)
    return message, [
        part.view(rows, *buffer.shape[1:]) for part, buffer in zip(parts, buffers, strict=True)
    ]
