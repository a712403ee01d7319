"""Where every token of a plan is computed and held, chunk by chunk: pure arithmetic.

Every member, and the controller, derives the same layout from the plan alone, so nothing about
it is ever sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_cdsp.parallel.spans import Move, Span, rebalance, split_chunk


@dataclass(frozen=True)
class ChunkLayout:
    """One chunk of a plan, resolved to tokens.

    Attributes:
        index: position in the plan.
        start: prompt position of its first token.
        tokens: its length.
        group: instances of its SP group, home first.
        spans: per member, the prompt spans it computes (its shard), ascending; may be empty.
        history: per member, the spans of earlier chunks it holds while this chunk runs.
        moves: history that changes holder before this chunk's attention, layer by layer.
    """

    index: int
    start: int
    tokens: int
    group: tuple[int, ...]
    spans: tuple[tuple[Span, ...], ...]
    history: tuple[tuple[Span, ...], ...]
    moves: tuple[Move, ...]

    def shard(self, instance: int) -> tuple[Span, ...]:
        """Spans that ``instance`` computes; empty for an instance outside the group."""
        return self.spans[self.group.index(instance)] if instance in self.group else ()


def padded_tokens(spans: Sequence[Span], page_size: int) -> int:
    """KV slots that the spans occupy, each span in whole pages."""
    return sum(-(-span.tokens // page_size) * page_size for span in spans)


def plan_layout(
    chunks: Sequence[tuple[int, Sequence[int]]], page_size: int
) -> tuple[ChunkLayout, ...]:
    """Resolve a plan into layouts.

    Args:
        chunks: ``(tokens, instances)`` per chunk; each group starts with the one before.
        page_size: KV page size in tokens; chunks but the last are multiples of it.
    """
    layouts: list[ChunkLayout] = []
    held: dict[int, tuple[Span, ...]] = {}
    start = 0
    for index, (tokens, instances) in enumerate(chunks):
        group = tuple(instances)
        grown = bool(layouts) and len(group) > len(layouts[-1].group)
        balanced = rebalance(held, group, page_size) if grown else None
        moves = balanced.moves if balanced else ()
        held = dict(balanced.held) if balanced else held
        spans = split_chunk(start, tokens, len(group), page_size)
        layouts.append(
            ChunkLayout(
                index=index,
                start=start,
                tokens=tokens,
                group=group,
                spans=spans,
                history=tuple(held.get(member, ()) for member in group),
                moves=moves,
            )
        )
        for member, own in zip(group, spans, strict=True):
            held[member] = held.get(member, ()) + own
        start += tokens
    return tuple(layouts)


def peak_tokens(layouts: Sequence[ChunkLayout], page_size: int) -> dict[int, int]:
    """KV slots that each instance needs at once, at worst, over the whole plan.

    While a chunk runs, history that moves away still occupies its old slots: they are freed
    at the chunk's end.
    """
    peak: dict[int, int] = {}
    for layout in layouts:
        for member, history, own in zip(layout.group, layout.history, layout.spans, strict=True):
            leaving = [move.span for move in layout.moves if move.src == member]
            need = sum(padded_tokens(spans, page_size) for spans in (history, own, leaving))
            peak[member] = max(peak.get(member, 0), need)
    return peak


@dataclass(frozen=True)
class Send:
    """One KV transfer to decode: ``spans`` of one member's shard, numbered for the request."""

    instance: int
    chunk: int
    send_id: int
    spans: tuple[Span, ...]
    last: bool


def number_sends(layouts: Sequence[ChunkLayout], decode_prefix: int) -> tuple[Send, ...]:
    """Number all KV transfers of a request from one counter, home's final one last.

    Stock decode counts the numbers as a set, from whichever agent they come; the one marked
    last says how many there are. Positions below ``decode_prefix`` are in decode's cache
    already and are not sent. When nothing at all is left for home's final transfer its spans
    are empty and only the metadata goes.
    """
    pieces: list[tuple[int, int, tuple[Span, ...]]] = []
    home = layouts[0].group[0]
    final_chunk = layouts[-1].index
    final: tuple[Span, ...] = ()
    for layout in layouts:
        for member, own in zip(layout.group, layout.spans, strict=True):
            clipped = tuple(
                Span(max(span.start, decode_prefix), span.stop)
                for span in own
                if span.stop > decode_prefix
            )
            if member == home and layout.index == final_chunk:
                final = clipped
            elif clipped:
                pieces.append((member, layout.index, clipped))
    sends = [Send(m, c, i, spans, False) for i, (m, c, spans) in enumerate(pieces)]
    return (*sends, Send(home, final_chunk, len(sends), final, True))
