"""Who computes which tokens of a chunk, and who holds which tokens of the history.

Pure integers: no torch. Positions count from the prompt's first token. A KV page covers the
positions ``[n * page_size, (n + 1) * page_size)`` and never has two holders, because decode
receives whole pages; so every cut lies at a multiple of the page size in prompt positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sglang_cdsp.parallel.errors import LayoutError


@dataclass(frozen=True, order=True)
class Span:
    """The prompt positions ``[start, stop)``. Never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise LayoutError(
                f"span [{self.start}, {self.stop}) is empty or negative: leave empty spans out"
            )

    @property
    def tokens(self) -> int:
        """Number of positions."""
        return self.stop - self.start


def tokens_of(spans: Iterable[Span]) -> int:
    """Return the number of positions in ``spans``."""
    return sum(span.tokens for span in spans)


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return ``spans`` in ascending order with touching neighbours made one.

    Raises:
        LayoutError: two spans share a position.
    """
    result: list[Span] = []
    for span in sorted(spans):
        if result and span.start < result[-1].stop:
            raise LayoutError(f"{span} and {result[-1]} overlap: a token has exactly one holder")
        if result and span.start == result[-1].stop:
            result[-1] = Span(result[-1].start, span.stop)
        else:
            result.append(span)
    return tuple(result)


def split_chunk(start: int, tokens: int, size: int, page_size: int) -> tuple[tuple[Span, ...], ...]:
    """Split the chunk ``[start, start + tokens)`` over ``size`` members, zigzag.

    The chunk is cut into ``2 * size`` pieces and member ``i`` takes pieces ``i`` and
    ``2 * size - 1 - i``: early tokens see few keys, late ones many, and each pair sees the same
    number in sum. Cuts are rounded down to a page, so that of all pieces the last one is never
    empty: the chunk's last token is always member 0's.

    Args:
        start: prompt position of the chunk's first token.
        tokens: tokens in the chunk, at least 1.
        size: members of the group, at least 1.
        page_size: tokens in a KV page, at least 1.

    Returns:
        One entry a member, by index: its spans in ascending order, none of them empty, touching
        ones joined. A member of a short chunk may have none.

    Raises:
        LayoutError: an argument is out of range.
    """
    if start < 0 or tokens < 1 or size < 1 or page_size < 1:
        raise LayoutError(
            f"cannot split tokens={tokens} from start={start} over size={size} members with "
            f"page_size={page_size}: start must be at least 0, the others at least 1"
        )
    pieces = 2 * size
    stop = start + tokens
    cuts = [start]
    for index in range(1, pieces):
        cut = start + tokens * index // pieces
        cuts.append(max(start, cut - cut % page_size))
    cuts.append(stop)

    def piece(index: int) -> list[Span]:
        first, last = cuts[index], cuts[index + 1]
        return [Span(first, last)] if first < last else []

    return tuple(joined(piece(i) + piece(pieces - 1 - i)) for i in range(size))


@dataclass(frozen=True, order=True)
class Move:
    """KV of ``span`` on its way from instance ``src``, which drops it, to instance ``dst``."""

    src: int
    dst: int
    span: Span


@dataclass(frozen=True)
class Rebalance:
    """History after the moves: ``held`` by instance, spans ascending and joined."""

    held: Mapping[int, tuple[Span, ...]]
    moves: tuple[Move, ...]


def rebalance(
    held: Mapping[int, tuple[Span, ...]],
    group: tuple[int, ...],
    page_size: int,
) -> Rebalance:
    """Spread the history evenly over a group that has grown (Tetris, section 4).

    History is seen by every query, so any even split is balanced. Only surplus moves: who holds
    more than its share gives the last pages of it, who holds less receives, nothing moves twice.
    While all pages are whole that is the least that can move.
    The result depends on the arguments alone, so everybody derives the same one.

    Args:
        held: the spans that each instance holds; instances without an entry are new.
        group: the instances of the next chunk, all holders among them.
        page_size: tokens in a KV page; a page, cut off or not, moves as a whole.

    Returns:
        The history by instance of ``group`` and the moves that lead there; none where no instance
        is new. When something moved, no two instances differ by more than ``page_size`` tokens.

    Raises:
        LayoutError: a holder is outside the group, or a token has two holders.
    """
    before = {instance: joined(held.get(instance, ())) for instance in group}
    joined(span for spans in held.values() for span in spans)  # raises where two hold one token
    strangers = sorted(
        instance for instance, spans in held.items() if spans and instance not in before
    )
    if strangers or page_size < 1 or len(before) != len(group) or not group:
        raise LayoutError(
            f"cannot spread the history of {sorted(held)} over group={group} with "
            f"page_size={page_size}: the group lists every holder once (missing: {strangers})"
        )
    if all(instance in held for instance in group):
        return Rebalance(before, ())

    parts = _give_surplus(before, group, page_size)
    _even_out(parts, page_size)
    moves = sorted(
        Move(origin, instance, span)
        for instance in group
        for origin in group
        if origin != instance
        for span in joined(span for holder, span in parts[instance] if holder == origin)
    )
    after = {instance: joined(span for _, span in parts[instance]) for instance in group}
    return Rebalance(after, tuple(moves))


_Parts = dict[int, list[tuple[int, Span]]]  # by new holder: (old holder, span)


def _pages(span: Span, page_size: int) -> int:
    return -(-span.stop // page_size) - span.start // page_size


def _split_tail(span: Span, pages: int, page_size: int) -> tuple[Span, Span]:
    """Cut the last ``pages`` pages, fewer than all, off ``span``."""
    cut = (-(-span.stop // page_size) - pages) * page_size
    return Span(span.start, cut), Span(cut, span.stop)


def _give_surplus(
    before: Mapping[int, tuple[Span, ...]], group: tuple[int, ...], page_size: int
) -> _Parts:
    """Level the numbers of pages with as few moves as possible."""
    counts = {i: sum(_pages(span, page_size) for span in before[i]) for i in group}
    share, extra = divmod(sum(counts.values()), len(group))
    # Who holds most keeps the odd pages: then they need not move.
    fullest = sorted(group, key=lambda i: (-counts[i], group.index(i)))
    target = {i: share + (place < extra) for place, i in enumerate(fullest)}

    parts: _Parts = {}
    surplus: list[tuple[int, Span]] = []
    for instance in group:
        spans = list(before[instance])
        given: list[Span] = []
        pages = counts[instance] - target[instance]
        while pages > 0:
            span = spans.pop()
            if _pages(span, page_size) > pages:
                rest, span = _split_tail(span, pages, page_size)
                spans.append(rest)
            pages -= _pages(span, page_size)
            given.append(span)
        parts[instance] = [(instance, span) for span in spans]
        surplus += [(instance, span) for span in reversed(given)]
    for instance in group:
        pages = target[instance] - counts[instance]
        while pages > 0:
            origin, span = surplus.pop()
            if _pages(span, page_size) > pages:
                rest, span = _split_tail(span, pages, page_size)
                surplus.append((origin, rest))
            pages -= _pages(span, page_size)
            parts[instance].append((origin, span))
    return parts


def _even_out(parts: _Parts, page_size: int) -> None:
    """Hand single pages from the fullest to the emptiest until they differ by a page at most.

    Needed only where pages are cut off (a prompt that began or ended inside one): equal numbers
    of pages may then hold unequal numbers of tokens. Each step brings two instances closer by up to
    a page, while they are more than a page apart; so it ends.
    """
    while True:
        load = {holder: tokens_of(span for _, span in held) for holder, held in parts.items()}
        full, empty = max(load, key=lambda i: load[i]), min(load, key=lambda i: load[i])
        if load[full] - load[empty] <= page_size:
            return

        def last_page(part: tuple[int, Span]) -> int:
            return part[1].stop - max(part[1].start, (part[1].stop - 1) // page_size * page_size)

        origin, span = part = max(parts[full], key=last_page)
        parts[full].remove(part)
        if _pages(span, page_size) > 1:
            rest, span = _split_tail(span, 1, page_size)
            parts[full].append((origin, rest))
        parts[empty].append((origin, span))
