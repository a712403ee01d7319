"""Whether a pool that answers nobody works or is stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterable

# A layer of a long chunk takes seconds on the slowest machine that a pool runs on.
STUCK_AFTER_S = 60.0


class PoolHealth:
    """Looks at the ranks' counters and remembers when each instance last came on."""

    def __init__(
        self, read: Callable[[], tuple[int, ...]], tp_size: int, clock: Callable[[], float]
    ) -> None:
        """Watch a pool.

        Args:
            read: a counter of layers for each rank, instance by instance.
            tp_size: ranks of an instance.
            clock: monotonic seconds.
        """
        self._read = read
        self._tp_size = tp_size
        self._clock = clock
        self._seen = read()
        self._moved_s = [clock()] * len(self._seen)

    def observe(self, busy: Iterable[int]) -> None:
        """Look at the counters; an instance that is not ``busy`` has nothing to come on with."""
        now_s, counters, working = self._clock(), self._read(), set(busy)
        for rank, counter in enumerate(counters):
            if counter != self._seen[rank] or rank // self._tp_size not in working:
                self._moved_s[rank] = now_s
        self._seen = counters

    @property
    def stuck(self) -> tuple[int, ...]:
        """Instances of which a rank has not come to its next layer for ``STUCK_AFTER_S``."""
        late_s = self._clock() - STUCK_AFTER_S
        ranks = (rank for rank, moved_s in enumerate(self._moved_s) if moved_s < late_s)
        return tuple(sorted({rank // self._tp_size for rank in ranks}))
