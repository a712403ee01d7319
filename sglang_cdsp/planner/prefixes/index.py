"""Which instance has which prefix cached, page by page.

A page is known by the hash of all tokens from the prompt's first to its own last, so equal hashes
mean equal prefixes, and prompts that must not share anything have other hashes
(``controller/prefixes/hashes.py``). An instance that holds a page holds all pages before it: its
tree takes in whole prefixes and evicts leaves first. So how much of a prompt an instance holds is
found by bisection. Where events were late or lost the answer is wrong for a while, which costs the
request that believed it another plan and nobody a token.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

GALLOP = 64
"""Pages after which a lookup asks first; then after twice as many, and so on. Prompts of which
nobody holds that much are hashed no further."""

MOST_LENGTHS = 4
"""So many different lengths a lookup tells at most, the longest ones."""

SCRUBBED = 4096
"""Entries from which an instance that was emptied is struck out at each call of `scrub`."""


@dataclass(frozen=True, slots=True)
class HeldPages:
    """Instances that hold equally much of a prompt: its first `pages` pages, at least one."""

    pages: int
    instances: tuple[int, ...]


class PrefixIndex:
    """The pages that each instance has cached.

    Memory: some 90 bytes for each different page that is cached anywhere, and no more pages of an
    instance than its slots hold.
    """

    def __init__(self, most_pages: Sequence[int]) -> None:
        """Nothing is cached.

        Args:
            most_pages: by instance, the pages that it has room for. One that seems to hold more
                has lost events; what it holds is forgotten then, and told anew as it changes.
        """
        self._most = tuple(most_pages)
        self._pages: dict[int, int] = {}  # by page, a bit for each holder
        self._counts = [0] * len(self._most)
        # Equal sets of holders are one object: a number of many bits takes as much as an entry.
        self._sets: dict[int, int] = {}
        # The bit of each instance. One that is emptied gets another bit, and its old one is struck
        # out little by little, so that no moment pays for all of its pages.
        self._bits = list(range(len(self._most)))
        self._owners = {bit: instance for instance, bit in enumerate(self._bits)}
        self._next_bit = len(self._most)
        self._stale = 0
        self._scrubbing: list[int] = []
        self._struck = 0
        self.lost_events = 0
        """How often an instance seemed to hold more than it can."""

    def __len__(self) -> int:
        """Different pages that are known, those among them that nobody holds any more."""
        return len(self._pages)

    def __contains__(self, page: int) -> bool:
        """Whether a page is known; one that nobody holds any more is until it is struck out."""
        return page in self._pages

    @property
    def instances(self) -> int:
        """How many there are."""
        return len(self._most)

    def bytes(self) -> int:
        """Memory of the index: its table, the pages' names, and the sets of holders."""
        names = sum(map(sys.getsizeof, self._pages))
        return sys.getsizeof(self._pages) + names + 2 * sum(map(sys.getsizeof, self._sets.values()))

    def count(self, instance: int) -> int:
        """Pages that an instance holds."""
        return self._counts[instance]

    def pages_of(self, instance: int) -> list[int]:
        """The pages that an instance holds; looks at all that are known."""
        bit = 1 << self._bits[instance]
        return [page for page, holders in self._pages.items() if holders & bit]

    @property
    def holds_any(self) -> bool:
        """Whether an instance holds a page."""
        return any(self._counts)

    @property
    def counts(self) -> list[int]:
        """Pages by instance."""
        return list(self._counts)

    # -- what instances tell ----------------------------------------------------------------

    def stored(self, instance: int, pages: Iterable[int]) -> list[int]:
        """An instance holds these pages from now on; returns those that were not known."""
        known, sets = self._pages, self._sets
        bit = 1 << self._bits[instance]
        added = 0
        new: list[int] = []
        for page in pages:
            before = known.get(page, 0)
            if not before & bit:
                if not before:
                    new.append(page)
                after = before | bit
                known[page] = sets.setdefault(after, after)
                added += 1
        self._counts[instance] += added
        if self._counts[instance] > self._most[instance]:
            self.lost_events += 1
            self.emptied(instance)
        return new

    def removed(self, instance: int, pages: Iterable[int]) -> list[int]:
        """An instance does not hold these pages any more; returns those that are forgotten."""
        known, sets = self._pages, self._sets
        bit = 1 << self._bits[instance]
        taken = 0
        gone: list[int] = []
        for page in pages:
            before = known.get(page, 0)
            if before & bit:
                after = before ^ bit
                taken += 1
                if after:
                    known[page] = sets.setdefault(after, after)
                else:
                    del known[page]
                    gone.append(page)
        self._counts[instance] -= taken
        return gone

    def emptied(self, instance: int) -> None:
        """An instance holds nothing any more: it was flushed, or its process has ended."""
        if not self._counts[instance]:
            return
        old, new = self._bits[instance], self._next_bit
        self._next_bit += 1
        self._stale |= 1 << old
        del self._owners[old]
        self._bits[instance], self._owners[new] = new, instance
        self._counts[instance] = 0

    @property
    def stale(self) -> bool:
        """Whether something is to be struck out of what emptied instances held."""
        return bool(self._stale)

    def scrub(self) -> list[int]:
        """Strike out some of what instances held that were emptied; returns what is forgotten."""
        gone: list[int] = []
        if not self._stale:
            return gone
        if not self._scrubbing:
            self._scrubbing, self._struck = list(self._pages), self._stale
        for page in self._scrubbing[-SCRUBBED:]:
            holders = self._pages.get(page, 0)
            if holders & self._struck:
                left = holders & ~self._struck
                if left:
                    self._pages[page] = self._sets.setdefault(left, left)
                else:
                    del self._pages[page]
                    gone.append(page)
        del self._scrubbing[-SCRUBBED:]
        if not self._scrubbing:
            self._stale &= ~self._struck
            self._renumber()
        return gone

    def forget(self) -> None:
        """Nobody holds anything, and nothing is known."""
        self._pages = {}
        self._counts = [0] * len(self._most)
        self._scrubbing = []
        self._stale = self._struck = 0
        self._renumber()

    def _renumber(self) -> None:
        """Forget the sets of holders that nobody has, and take low bits again if all are free."""
        self._sets = {holders: holders for holders in set(self._pages.values())}
        if not self._pages:
            self._bits = list(range(len(self._most)))
            self._owners = {bit: instance for instance, bit in enumerate(self._bits)}
            self._next_bit = len(self._most)

    # -- what is asked ----------------------------------------------------------------------

    def lookup(self, pages: Sequence[int]) -> tuple[HeldPages, ...]:
        """How much of a prompt is held by whom, the longest first; `MOST_LENGTHS` of them at most.

        Args:
            pages: of the prompt, in order; asked for only as far as somebody may hold them.
        """
        count = len(pages)
        holders = self._holders(pages[0]) if count else 0
        low, reach = 1, GALLOP
        # Who does not hold all up to a reach is looked for between that and the reach before.
        between: list[tuple[int, int, int]] = []
        while holders and low < count:
            high = min(reach, count)
            here = self._holders(pages[high - 1]) & holders
            if here != holders:
                between.append((holders & ~here, low, high - 1))
            holders, low, reach = here, high, 2 * reach
        found = [self._held(count, holders)] if holders else []
        for mask, least, most in reversed(between):
            for length, group in self._bisect(pages, mask, least, most):
                if len(found) == MOST_LENGTHS:
                    return tuple(found)
                found.append(self._held(length, group))
        return tuple(found)

    def _bisect(
        self, pages: Sequence[int], mask: int, low: int, high: int
    ) -> Iterator[tuple[int, int]]:
        """Those of `mask`, who hold from `low` to `high` pages, by length, the longest first."""
        if low == high:
            yield low, mask
            return
        middle = (low + high + 1) // 2
        here = self._holders(pages[middle - 1]) & mask
        if here:
            yield from self._bisect(pages, here, middle, high)
        if rest := mask & ~here:
            yield from self._bisect(pages, rest, low, middle - 1)

    def _holders(self, page: int) -> int:
        return self._pages.get(page, 0) & ~self._stale

    def _held(self, length: int, holders: int) -> HeldPages:
        instances = []
        while holders:
            bit = holders & -holders
            instances.append(self._owners[bit.bit_length() - 1])
            holders ^= bit
        return HeldPages(length, tuple(sorted(instances)))
