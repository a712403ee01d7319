"""Tells the dead from the slow.

Dead is who has ended or complained, which the launcher tells, and who was stopped or is silent,
which is told here. A life that computes for minutes is neither: its thread that counts goes on.

Time in which the controller itself did not run counts for nobody. Whoever stops the whole server
and lets it go on later finds all of it alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sglang_cdsp.controller.seats.launcher import Vitals
from sglang_cdsp.controller.seats.states import Cause

STOPPED_GRACE_S = 2.0
"""How long a process may be stopped; debuggers and profilers stop one for an instant."""
SILENT_AFTER_S = 20.0
"""How long no beat may come. The thread that counts waits for Python's lock, and for a core."""
LONGEST_STEP_S = 0.5
"""What counts at most between two looks: the controller looks more often while it runs."""


@dataclass(frozen=True)
class Symptom:
    """A life that is to be given up."""

    seat: int
    cause: Cause
    words: str


@dataclass
class _Seen:
    """When, by the time that counts, a life last showed that it lives.

    Attributes:
        beats: of each rank.
        moved_s: when each rank's last moved; None before its first one.
        running_s: when none of its processes was stopped.
    """

    beats: list[int]
    moved_s: list[float | None]
    running_s: float


class SeatWatch:
    """Looks at the lives of all seats, time and again."""

    def __init__(self) -> None:
        self._own_s = 0.0
        self._last_s: float | None = None
        self._seen: dict[int, _Seen] = {}

    def forget(self, seat: int) -> None:
        """Another life will come, or none."""
        self._seen.pop(seat, None)

    def look(self, now_s: float, vitals: Mapping[int, Vitals]) -> list[Symptom]:
        """Look at the lives of some seats; those left out are forgotten.

        Args:
            now_s: monotonic seconds.
            vitals: by seat.
        """
        if self._last_s is not None:
            self._own_s += min(LONGEST_STEP_S, max(0.0, now_s - self._last_s))
        self._last_s = now_s
        for seat in self._seen.keys() - vitals.keys():
            del self._seen[seat]
        symptoms = (self._look_at(seat, seen) for seat, seen in sorted(vitals.items()))
        return [symptom for symptom in symptoms if symptom is not None]

    def _look_at(self, seat: int, vitals: Vitals) -> Symptom | None:
        now_s = self._own_s
        seen = self._seen.get(seat)
        if seen is None:
            beats = list(vitals.beats)
            seen = self._seen[seat] = _Seen(beats, [None] * len(beats), now_s)
        for rank, beat in enumerate(vitals.beats):
            if beat != seen.beats[rank]:
                seen.beats[rank], seen.moved_s[rank] = beat, now_s
        if not vitals.stopped:
            seen.running_s = now_s
        elif now_s - seen.running_s >= STOPPED_GRACE_S:
            pids = ", ".join(map(str, vitals.stopped))
            return Symptom(
                seat,
                Cause.STOPPED,
                f"process {pids} was stopped for {STOPPED_GRACE_S:.0f} s (SIGSTOP)",
            )
        # Until its first beat a rank imports, and has no thread that counts.
        for rank, moved_s in enumerate(seen.moved_s):
            if moved_s is not None and now_s - moved_s >= SILENT_AFTER_S:
                return Symptom(
                    seat,
                    Cause.SILENT,
                    f"rank {rank} has given no sign of life for {SILENT_AFTER_S:.0f} s",
                )
        return None
