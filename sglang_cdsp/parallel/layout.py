"""Who computes which tokens of a chunk, and who holds which tokens of the history.

Pure integers: no torch. Positions count from the prompt's first token. A KV page covers the
positions ``[n * page_size, (n + 1) * page_size)`` and never has two holders, because decode
receives whole pages; so every cut lies at a multiple of the page size in prompt positions.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        One entry a member: its spans in ascending order, none of them empty, touching ones joined.
        A member of a short chunk may have none.

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
