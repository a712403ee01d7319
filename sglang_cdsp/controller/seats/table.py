"""The seats of a pool and the lives on them, as a state machine. Pure: no processes, no clock.

A *seat* is the place of an instance. A *life* is the set of processes on it, numbered by its
*incarnation*, from 1 up. Times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_cdsp.controller.seats.states import LIVING, PRESENT, Cause, Death, SeatState

DEATHS_ALLOWED = 3
"""So many deaths within ``DEATHS_WITHIN_S``, and the seat stays down."""
DEATHS_WITHIN_S = 600.0
LONGEST_BACK_OFF_S = 30.0
DEATHS_SHOWN = 10


@dataclass
class _Seat:
    state: SeatState = SeatState.DOWN
    incarnation: int = 0
    wanted: bool = True
    """False after a drain, until somebody starts it again."""
    held: str = ""
    """Why it is not started again by itself."""
    due_s: float | None = None
    restarts: int = 0
    recent: list[float] = field(default_factory=list)
    """Times of the deaths that count for the limit."""
    deaths: list[Death] = field(default_factory=list)


class SeatTable:
    """All seats of a pool. A fresh table is down, and every seat is due at once."""

    def __init__(self, seats: int) -> None:
        self._seats = [_Seat(due_s=float("-inf")) for _ in range(seats)]

    # -- asked ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._seats)

    def state(self, seat: int) -> SeatState:
        """Where the seat is."""
        return self._seats[seat].state

    def incarnation(self, seat: int) -> int:
        """The present life's number, or the last one's; 0 before the first."""
        return self._seats[seat].incarnation

    def in_state(self, *states: SeatState) -> tuple[int, ...]:
        """Seats in one of the states, ascending."""
        return tuple(i for i, seat in enumerate(self._seats) if seat.state in states)

    @property
    def present(self) -> tuple[int, ...]:
        """Seats that hear orders."""
        return self.in_state(*PRESENT)

    def coming_back(self, seat: int) -> bool:
        """Whether the seat takes work, or will without anybody's doing."""
        entry = self._seats[seat]
        return entry.wanted and (entry.state is not SeatState.DOWN or entry.due_s is not None)

    def reason(self, seat: int) -> str:
        """Why the seat is not up; "" while it is."""
        entry = self._seats[seat]
        if entry.state is SeatState.UP:
            return ""
        if not entry.wanted:
            return "drained on request" if entry.state is SeatState.DOWN else "asked to leave"
        if entry.state is SeatState.DOWN and entry.held:
            return entry.held
        last = entry.deaths[-1].words if entry.deaths else ""
        return f"the last life: {last}" if last else ""

    @property
    def degraded(self) -> tuple[int, ...]:
        """Seats that should be up and are not."""
        return tuple(
            i for i, s in enumerate(self._seats) if s.wanted and s.state is not SeatState.UP
        )

    @classmethod
    def all_up(cls, seats: int) -> SeatTable:
        """A table of seats whose first lives take part."""
        table = cls(seats)
        for seat in range(seats):
            table.started(seat)
            table.greeted(seat)
            table.joined(seat)
        return table

    def due(self, now_s: float) -> tuple[int, ...]:
        """Seats whose next life is to be started now."""
        return tuple(
            number
            for number, seat in enumerate(self._seats)
            if seat.state is SeatState.DOWN and seat.due_s is not None and seat.due_s <= now_s
        )

    @property
    def degraded_words(self) -> str:
        """The seats that should be up and are not, each with its state and reason."""
        return "; ".join(
            f"instance {seat} is {self.state(seat).value}"
            + (f" ({why})" if (why := self.reason(seat)) else "")
            for seat in self.degraded
        )

    # -- told -----------------------------------------------------------------------------

    def started(self, seat: int) -> int:
        """The processes of a next life are being started; return its incarnation.

        Raises:
            ValueError: the seat has not been confirmed to be empty.
        """
        entry = self._in(seat, SeatState.DOWN)
        entry.state, entry.due_s, entry.held = SeatState.STARTING, None, ""
        entry.restarts += entry.incarnation > 0
        entry.incarnation += 1
        return entry.incarnation

    def greeted(self, seat: int) -> None:
        """All ranks of the present life have greeted."""
        self._in(seat, SeatState.STARTING).state = SeatState.JOINING

    def joined(self, seat: int) -> None:
        """The present life takes part from now on."""
        entry = self._in(seat, SeatState.JOINING)
        entry.state, entry.held = SeatState.UP, ""

    def lost(self, seat: int, cause: Cause, words: str, now_s: float) -> bool:
        """The present life is given up; whether there was one.

        What was asked to leave and dies meanwhile has died, and stays down.
        """
        entry = self._seats[seat]
        if entry.state not in LIVING:
            return False
        entry.state = SeatState.ENDING
        death = Death(now_s, entry.incarnation, cause, words)
        entry.deaths = [*entry.deaths, death][-DEATHS_SHOWN:]
        entry.recent = [at for at in entry.recent if at > now_s - DEATHS_WITHIN_S] + [now_s]
        return True

    def leaving(self, seat: int) -> None:
        """A seat that was asked to leave has finished: its processes are ended, which is no death.

        Raises:
            ValueError: it was not asked, or is not there.
        """
        entry = self._in(seat, *LIVING)
        if entry.wanted:
            raise ValueError(f"seat {seat} was not asked to leave")
        entry.state = SeatState.ENDING

    def ended(self, seat: int, now_s: float) -> None:
        """The kernel has confirmed the end of every process of the life that was given up."""
        entry = self._in(seat, SeatState.ENDING)
        entry.state = SeatState.DOWN
        if not entry.wanted:
            return
        if not entry.held and len(entry.recent) >= DEATHS_ALLOWED:
            entry.held = (
                f"{len(entry.recent)} deaths within {DEATHS_WITHIN_S / 60:.0f} minutes, the last: "
                f"{entry.deaths[-1].words}; {_remedy(seat)}"
            )
        if not entry.held:
            deaths = len(entry.recent)
            back_off_s = min(LONGEST_BACK_OFF_S, 2.0 ** (deaths - 1)) if deaths else 0.0
            entry.due_s = now_s + back_off_s

    def hold(self, seat: int, reason: str) -> None:
        """Do not start the seat again by itself: it would fail again, for this reason."""
        entry = self._seats[seat]
        entry.held, entry.due_s = f"{reason}; {_remedy(seat)}", None

    # -- asked for by people --------------------------------------------------------------

    def check_drain(self, seat: int) -> None:
        """Raise ``ValueError``, with the reason, if the seat cannot be asked to leave now."""
        self.check(seat)
        others = [number for number in range(len(self._seats)) if number != seat]
        if self._seats[seat].state is SeatState.UP:
            stay = any(self._seats[number].state is SeatState.UP for number in others)
        else:
            stay = any(self.coming_back(number) for number in others)
        if not stay and self._seats[seat].wanted:
            raise ValueError(
                f"seat {seat} is the last one that works: start another seat before it is drained"
            )

    def check(self, seat: int) -> None:
        """Raise ``ValueError`` if there is no such seat."""
        if not 0 <= seat < len(self._seats):
            raise ValueError(f"there is no seat {seat}: they are 0 to {len(self._seats) - 1}")

    def drain(self, seat: int) -> None:
        """Ask a seat to leave. One that comes up must be ended by the caller, see ``leaving``.

        Raises:
            ValueError: it cannot leave now; says why.
        """
        self.check_drain(seat)
        entry = self._seats[seat]
        entry.wanted, entry.due_s = False, None
        if entry.state is SeatState.UP:
            entry.state = SeatState.DRAINING

    def start(self, seat: int, now_s: float) -> None:
        """Take the seat into use (again): earlier deaths do not count any more."""
        self.check(seat)
        entry = self._seats[seat]
        entry.wanted, entry.held, entry.recent = True, "", []
        if entry.state is SeatState.DOWN:
            entry.due_s = now_s
        elif entry.state is SeatState.DRAINING:
            entry.state = SeatState.UP

    # -- shown ----------------------------------------------------------------------------

    def snapshot(self, now_s: float, unix_offset_s: float) -> list[dict[str, Any]]:
        """For status pages, JSON-ready; times as Unix seconds.

        Args:
            unix_offset_s: the wall clock's lead over ``now_s``.
        """
        return [
            {
                "seat": number,
                "state": seat.state.value,
                "incarnation": seat.incarnation,
                "restarts": seat.restarts,
                "reason": self.reason(number),
                "starts_in_s": None if seat.due_s is None else max(0.0, seat.due_s - now_s),
                "deaths": [
                    {
                        "at": death.at_s + unix_offset_s,
                        "incarnation": death.incarnation,
                        "cause": death.cause.value,
                        "words": death.words,
                    }
                    for death in seat.deaths
                ],
            }
            for number, seat in enumerate(self._seats)
        ]

    def _in(self, seat: int, *states: SeatState) -> _Seat:
        entry = self._seats[seat]
        if entry.state not in states:
            wanted = " or ".join(state.value for state in states)
            raise ValueError(f"seat {seat} is {entry.state.value}, not {wanted}")
        return entry


def _remedy(seat: int) -> str:
    return f'to try again: POST /cdsp/update {{"seats": {{"{seat}": "start"}}}}'
