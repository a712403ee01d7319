"""Where every token of a plan is computed and held, chunk by chunk: pure arithmetic.

Every instance of a plan derives the same layout from the plan alone, so nothing about it is ever
sent. The controller needs none: it promises slots by the planner's bound (``planner/memory.py``).
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
        group: instances of its SP group, home first; the place in it is the member's index.
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
    chunks: Sequence[tuple[int, Sequence[int]]], page_size: int, reused: int = 0
) -> tuple[ChunkLayout, ...]:
    """Resolve a plan into layouts.

    Args:
        chunks: ``(tokens, instances)`` per chunk; each group starts with the one before.
        page_size: KV page size in tokens; chunks but the last are multiples of it.
        reused: tokens in front of the first chunk that its home holds already, whole pages.

    Raises:
        LayoutError: a group that has grown leaves a holder out, or a number is out of range.
    """
    layouts: list[ChunkLayout] = []
    held: dict[int, tuple[Span, ...]] = {}
    before: tuple[int, ...] = ()
    if reused:
        before = (chunks[0][1][0],)
        held[before[0]] = (Span(0, reused),)
    start = reused
    for index, (tokens, instances) in enumerate(chunks):
        group = tuple(instances)
        grown = bool(before) and len(group) > len(before)
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
                history=tuple(held.get(instance, ()) for instance in group),
                moves=moves,
            )
        )
        for instance, own in zip(group, spans, strict=True):
            held[instance] = held.get(instance, ()) + own
        start += tokens
        before = group
    return tuple(layouts)


@dataclass(frozen=True)
class Send:
    """One KV transfer to decode, numbered for the request.

    Attributes:
        instance: who sends.
        chunk: the chunk whose shard it is.
        send_id: its number.
        spans: what is sent of the shard.
        last: whether it is home's final one, which tells decode how many there are.
    """

    instance: int
    chunk: int
    send_id: int
    spans: tuple[Span, ...]
    last: bool


def number_sends(layouts: Sequence[ChunkLayout], decode_prefix: int) -> tuple[Send, ...]:
    """Number all KV transfers of a request from one counter, home's final one last.

    Stock decode counts the numbers as a set, from whichever agent they come; the one marked
    last says how many there are. Where nothing is left for home's final transfer its spans are
    empty and only the metadata goes. A prefix that home has cached goes with its first shard.

    Args:
        layouts: the whole plan.
        decode_prefix: positions below it are in decode's cache already and are not sent.
    """
    shards: list[tuple[int, int, tuple[Span, ...]]] = []
    home = layouts[0].group[0]
    reused = layouts[0].start
    final_chunk = layouts[-1].index
    final: tuple[Span, ...] = ()
    for layout in layouts:
        for instance, own in zip(layout.group, layout.spans, strict=True):
            cached = (Span(0, reused),) if reused and layout is layouts[0] else ()
            held = (*cached, *own) if instance == home else own
            clipped = tuple(
                Span(max(span.start, decode_prefix), span.stop)
                for span in held
                if span.stop > decode_prefix
            )
            if instance == home and layout.index == final_chunk:
                final = clipped
            elif clipped:
                shards.append((instance, layout.index, clipped))
    sends = [
        Send(instance, chunk, send_id, spans, last=False)
        for send_id, (instance, chunk, spans) in enumerate(shards)
    ]
    return (*sends, Send(home, final_chunk, len(sends), final, last=True))
