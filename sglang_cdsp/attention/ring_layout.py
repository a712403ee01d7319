"""What each member of an SP group holds and sees while one chunk runs.

Everything follows from prompt positions: a query sees the whole history, and of the chunk the keys
at its own position and before. Since spans are cut from one chunk and never overlap, a query span
sees a key span of another member either fully or not at all; a member's own rows ascend in
position, so its own part of the chunk is causal in row order.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_cdsp.parallel.errors import LayoutError
from sglang_cdsp.parallel.spans import Span, joined, tokens_of


@dataclass(frozen=True)
class Visible:
    """Query rows ``[first, last)`` of one member; all see a block's first ``keys`` rows."""

    first: int
    last: int
    keys: int


@dataclass(frozen=True)
class RingLayout:
    """One chunk on one SP group, as seen by one member; members are indexed in group order.

    A member's *block* is what it holds: the rows of its history (any order), then those of its
    part of the chunk (ascending).

    Attributes:
        group: instance of each member.
        me: index of the member that sees it so.
        history_tokens: history rows that each member holds.
        pieces: each member's spans of the chunk, from ``split_chunk``.

    Raises:
        LayoutError: the parts do not fit together.
    """

    group: tuple[int, ...]
    me: int
    history_tokens: tuple[int, ...]
    pieces: tuple[tuple[Span, ...], ...]

    def __post_init__(self) -> None:
        size = len(self.group)
        if len(set(self.group)) != size or not 0 <= self.me < size:
            raise LayoutError(
                f"a group lists every member once and me is an index into it, not me={self.me} "
                f"in group={self.group}"
            )
        if len(self.history_tokens) != size or len(self.pieces) != size:
            raise LayoutError(
                f"group={self.group} needs {size} entries of history_tokens and of pieces, not "
                f"{len(self.history_tokens)} and {len(self.pieces)}"
            )
        if min(self.history_tokens) < 0:
            raise LayoutError(f"history_tokens={self.history_tokens} must not be negative")
        joined(span for spans in self.pieces for span in spans)  # raises where spans overlap
        if any(list(spans) != sorted(spans) for spans in self.pieces):
            raise LayoutError(f"each member's spans must ascend: {self.pieces}")

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.group)

    @property
    def own_tokens(self) -> int:
        """Tokens of the chunk that this member computes."""
        return self.chunk_tokens(self.me)

    def chunk_tokens(self, member: int) -> int:
        """Tokens of the chunk that ``member`` computes."""
        return tokens_of(self.pieces[member])

    def block_rows(self, member: int) -> int:
        """Rows in the block of ``member``: history and chunk."""
        return self.history_tokens[member] + self.chunk_tokens(member)

    def visible(self, member: int, holder: int) -> tuple[Visible, ...]:
        """Return what the queries of ``member`` see of the block of another ``holder``.

        Keys that a query span sees come before it, so they are a prefix of the block's rows.
        Neighbouring spans with one prefix are one entry; rows that see nothing have none. Entries
        ascend and leave no gap up to the member's last row.
        """
        entries: list[Visible] = []
        row = 0
        for span in self.pieces[member]:
            keys = self.history_tokens[holder] + sum(
                other.tokens for other in self.pieces[holder] if other.stop <= span.start
            )
            first, row = row, row + span.tokens
            if entries and entries[-1].keys == keys:
                entries[-1] = Visible(entries[-1].first, row, keys)
            elif keys:
                entries.append(Visible(first, row, keys))
        return tuple(entries)

    def visible_rows(self, member: int, holder: int) -> range:
        """Return the query rows of ``member`` that see anything of another ``holder``'s block."""
        entries = self.visible(member, holder)
        return range(entries[0].first, entries[-1].last) if entries else range(0)

    def hops(self, holder: int) -> int:
        """Return how many steps along the ring the block of ``holder`` is needed."""
        return max(
            (
                step
                for step in range(1, self.size)
                if self.visible((holder + step) % self.size, holder)
            ),
            default=0,
        )
