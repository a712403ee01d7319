"""Lanes: the links' buffers that a running chunk has to itself at all its members."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


class LaneTable:
    """Which chunk has which lane.

    A chunk gets its lane before it starts, on all its members together, so inside a chunk nobody
    waits for buffers that another chunk holds. One table serves a pool as long as it lives: the
    instances tell one use of a lane from the next by a serial that only grows.
    """

    def __init__(self, lanes: int) -> None:
        """Every instance has ``lanes`` of them towards each other one."""
        self._lanes = lanes
        self._last_serial = 0
        self._held: dict[Hashable, tuple[int, frozenset[int]]] = {}

    def take(self, holder: Hashable, group: Sequence[int], spare: int = 0) -> int | None:
        """Give a task, say, the first lane that is free at all of ``group``; None if none is.

        A group of one sends nothing: it takes no lane and gets 0.

        Args:
            holder: who gives it back.
            spare: lanes that must be free beside it.
        """
        if len(group) == 1:
            return 0
        members = frozenset(group)
        taken = {lane for lane, held_at in self._held.values() if members & held_at}
        able = [lane for lane in range(self._lanes) if lane not in taken]
        if len(able) <= spare:
            return None
        self._held[holder] = (able[0], members)
        return able[0]

    def next_serial(self) -> int:
        """A number that no chunk of the pool has had."""
        self._last_serial += 1
        return self._last_serial

    def give_back(self, holder: Hashable) -> bool:
        """Take back what a holder has; whether it had a lane."""
        return self._held.pop(holder, None) is not None
