"""Which cached prefixes are asked for so often that another instance should have them, too.

A use is a prompt of which some instance had cached a prefix when it was planned. Uses decay: one
that is t seconds ago counts e^(-t / DECAY_S). A prefix gets one more copy when each of its copies,
the new one among them, would still be used often enough (`LEAST_USES`).

The copy takes the place of what its target would evict next, the least recently used. How long that
has been unused is told by how fast the cache turns over: a cache of n tokens into which r tokens a
second are stored has evicted all that was not used for n / r seconds. Where a copy would be used
less than once in that time none is made: it would be of lower use than what it pushes out.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence

DECAY_S = 60.0
"""Seconds after which a use counts 1/e."""

LEAST_USES = 2.0
"""Decayed uses that each copy of a prefix must have for another one to be made."""

MOST_KNOWN = 4096
"""Prefixes whose uses are counted; those that were used longest ago are forgotten."""


class Decayed:
    """A sum whose parts decay."""

    __slots__ = ("_at_s", "_sum")

    def __init__(self) -> None:
        self._sum, self._at_s = 0.0, 0.0

    def at(self, now_s: float) -> float:
        """The sum now."""
        return self._sum * math.exp(-max(0.0, now_s - self._at_s) / DECAY_S)

    def add(self, amount: float, now_s: float) -> float:
        """Add something; returns the sum."""
        self._sum, self._at_s = self.at(now_s) + amount, now_s
        return self._sum


class PrefixUses:
    """How often each prefix was used of late, by the name of its last page."""

    def __init__(self) -> None:
        self._uses: OrderedDict[int, Decayed] = OrderedDict()

    def used(self, name: int, now_s: float) -> float:
        """A prefix is used; returns its decayed uses, this one among them."""
        uses = self._uses.pop(name, None) or Decayed()
        self._uses[name] = uses
        while len(self._uses) > MOST_KNOWN:
            self._uses.popitem(last=False)
        return uses.add(1.0, now_s)


class Turnover:
    """How fast the caches of the instances turn over."""

    def __init__(self, instances: int) -> None:
        self._stored = [Decayed() for _ in range(instances)]

    def stored(self, instance: int, tokens: int, now_s: float) -> None:
        """So many tokens have entered an instance's cache."""
        self._stored[instance].add(tokens, now_s)

    def age_s(self, instance: int, cached: int, free: int, now_s: float) -> float:
        """Seconds for which what the instance evicts next has not been used, about.

        Infinite while nothing need be evicted.

        Args:
            cached: tokens in its cache.
            free: slots that are free, or hold what is cached for nobody.
        """
        rate = self._stored[instance].at(now_s) / DECAY_S
        return cached / rate if cached >= free and rate > 0 else math.inf


def wants_copy(uses: float, copies: int) -> bool:
    """Whether a prefix with so many decayed uses should have one more copy than it has."""
    return uses >= LEAST_USES * (copies + 1)


def target_of_copy(
    uses: float,
    copies: int,
    ages_s: Sequence[float],
    queue_s: Sequence[float],
    able: Collection[int],
) -> int | None:
    """Where the next copy of a prefix goes: where what it pushes out is used least.

    Args:
        uses, copies: of the prefix, as in `wants_copy`.
        ages_s: by instance, see `Turnover.age_s`.
        queue_s: by instance, the work that it has; decides among equal ages.
        able: instances that take chunks, have not got the prefix and have the slots.

    Returns:
        None if it would be used less than what it pushes out, anywhere.
    """
    per_second = uses / (copies + 1) / DECAY_S
    worth = [i for i in able if per_second * ages_s[i] >= 1.0]
    return min(worth, key=lambda i: (-ages_s[i], queue_s[i], i), default=None)
