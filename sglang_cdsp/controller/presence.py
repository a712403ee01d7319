"""Which seats of a pool take part, as its requests see it.

A seat is the place of an instance; the processes on it may end and be started again. Pure
bookkeeping: who ends and starts them tells it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from sglang_cdsp.planner.explanation import ranges


class Stand(Enum):
    """How a seat stands."""

    UP = "up"
    DRAINING = "draining"  # it ends what it has and gets nothing new
    LOST = "lost"  # given up; it may still write until its end is confirmed
    DOWN = "down"  # nothing of its last process is left


@dataclass
class _Seat:
    """One seat.

    Attributes:
        stays_down: why it does not come back by itself, "" if it does.
    """

    stand: Stand = Stand.UP
    stays_down: str = ""


class Presence:
    """The seats of a pool."""

    def __init__(self, seats: int) -> None:
        """All are up."""
        self._seats = [_Seat() for _ in range(seats)]

    def stand(self, seat: int) -> Stand:
        """How a seat stands."""
        return self._seats[seat].stand

    @property
    def up(self) -> frozenset[int]:
        """Seats that get new work."""
        return self._which(lambda seat: seat.stand is Stand.UP)

    @property
    def expected(self) -> frozenset[int]:
        """Seats that are up or come back without anybody's doing."""
        return self._which(lambda seat: seat.stand is Stand.UP or not seat.stays_down)

    @property
    def missing(self) -> frozenset[int]:
        """Seats that get no new work and do not come back by themselves."""
        return self._which(lambda seat: seat.stand is not Stand.UP and bool(seat.stays_down))

    @property
    def all_up(self) -> bool:
        """Whether none is absent."""
        return all(seat.stand is Stand.UP for seat in self._seats)

    def _which(self, wanted: Callable[[_Seat], bool]) -> frozenset[int]:
        return frozenset(i for i, seat in enumerate(self._seats) if wanted(seat))

    def reasons(self, seats: Iterable[int]) -> str:
        """Why seats stay down, the seats of equal reasons together."""
        by_reason: dict[str, list[int]] = {}
        for seat in sorted(seats):
            by_reason.setdefault(self._seats[seat].stays_down, []).append(seat)
        return "; ".join(f"{named(found)}: {reason}" for reason, found in by_reason.items())

    # -- what happens to seats ------------------------------------------------------------

    def lost(self, seat: int) -> None:
        """A seat's process is dead or will be killed."""
        self._seats[seat].stand = Stand.LOST

    def ended(self, seat: int) -> None:
        """The kernel has confirmed its end."""
        self._seats[seat].stand = Stand.DOWN

    def comes_up(self, seat: int) -> None:
        """It takes part."""
        self._seats[seat] = _Seat()

    def drains(self, seat: int, why: str) -> None:
        """It gets nothing new, and stays down when it has ended what it has."""
        self._seats[seat].stand = Stand.DRAINING
        self._seats[seat].stays_down = why

    def stays_down(self, seat: int, why: str) -> None:
        """It does not come back by itself; with ``why`` "" it does."""
        self._seats[seat].stays_down = why


def named(seats: Iterable[int]) -> str:
    """Seats in messages."""
    found = sorted(seats)
    return f"{'instance' if len(found) == 1 else 'instances'} {ranges(found)}"
