"""A run as a plan log tells of it. Times are seconds since its first moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

ABSENT = frozenset({"ending", "down", "starting", "joining"})
"""States of a seat in which nothing runs there; see ``controller/seats/states.py``."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of a plan, as it was to run and as it ran.

    Attributes:
        tokens: of the prompt.
        instances: its group.
        start_s, end_s: when it ran; None for what never came.
        planned_s: when it was to start and to end.
        passed_s: seconds in between in which others ran.
    """

    tokens: int
    instances: tuple[int, ...]
    start_s: float | None
    end_s: float | None
    planned_s: tuple[float, float]
    passed_s: float

    @property
    def sp_size(self) -> int:
        """Instances of its group."""
        return len(self.instances)


@dataclass(frozen=True, slots=True)
class Change:
    """The rest of a plan was planned anew.

    Attributes:
        at_s: when.
        chunk: the first that changes.
        reason: what it was good for.
        before, after: the rest by either plan, ``(tokens, SP size)`` of each chunk.
    """

    at_s: float
    chunk: int
    reason: str
    before: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """An ended request.

    Attributes:
        rid: SGLang's request id.
        tokens: prompt length.
        policy: what planned it, "" if nothing did.
        arrival_s, bound_s, first_token_s, drained_s: moments; None for those that never came.
        planned_s: when its first token was expected by the last plan before it, None without one.
        chunks: of the last plan.
        changes: of the plan.
        lost: instances that were lost while its plan named them.
        passes: its chunk ran between the layers of others.
        outcome: ``"finished"``, ``"aborted"`` or ``"failed"``.
        error: why it did not finish.
    """

    rid: str
    tokens: int
    policy: str
    arrival_s: float
    bound_s: float | None
    first_token_s: float | None
    drained_s: float | None
    planned_s: float | None
    chunks: tuple[Chunk, ...]
    changes: tuple[Change, ...]
    lost: tuple[int, ...]
    passes: bool
    outcome: str
    error: str

    @property
    def ttft_s(self) -> float | None:
        """Seconds from its arrival to its first token, None if that never came."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def waited_s(self) -> float | None:
        """Seconds from its arrival to its first chunk, None if that never ran."""
        starts = [chunk.start_s for chunk in self.chunks if chunk.start_s is not None]
        return min(starts) - self.arrival_s if starts else None

    @property
    def end_s(self) -> float:
        """The last moment that is known of it."""
        moments = [self.arrival_s, self.bound_s, self.first_token_s, self.drained_s]
        moments += [chunk.end_s for chunk in self.chunks]
        moments += [change.at_s for change in self.changes]
        return max(moment for moment in moments if moment is not None)


@dataclass(frozen=True, slots=True)
class SeatChange:
    """A seat went over to another state.

    Attributes:
        at_s: when.
        seat: which, an instance's number.
        incarnation: which life of it.
        state, why: the new state, and a few words.
    """

    at_s: float
    seat: int
    incarnation: int
    state: str
    why: str


@dataclass(frozen=True)
class Run:
    """What a plan log tells.

    Attributes:
        requests: by arrival.
        seats: changes of the seats, in order.
        instances: how many the log names.
        unix_s: wall clock at second 0.
    """

    requests: tuple[Request, ...]
    seats: tuple[SeatChange, ...]
    instances: int
    unix_s: float

    @property
    def end_s(self) -> float:
        """The run's last moment."""
        ends = [request.end_s for request in self.requests]
        return max([*ends, *(change.at_s for change in self.seats)], default=0.0)

    def between(self, start_s: float, end_s: float) -> Run:
        """The run with only what lies, at least in part, between two times."""
        return replace(
            self,
            requests=tuple(r for r in self.requests if r.arrival_s <= end_s and r.end_s >= start_s),
            seats=tuple(change for change in self.seats if change.at_s <= end_s),
        )


def absences(run: Run, seat: int, end_s: float) -> list[tuple[float, float]]:
    """When a seat was absent, up to ``end_s``.

    A chunk that ran there ends an absence: a server that was started anew logs no seats.
    """
    starts = sorted(
        chunk.start_s
        for request in run.requests
        for chunk in request.chunks
        if chunk.start_s is not None and seat in chunk.instances
    )
    found: list[tuple[float, float]] = []
    since: float | None = None
    for change in run.seats:
        if change.seat != seat:
            continue
        if since is None and change.state in ABSENT:
            since = change.at_s
        elif since is not None and change.state not in ABSENT:
            found.append((since, _until(starts, since, change.at_s)))
            since = None
    if since is not None:
        found.append((since, _until(starts, since, end_s)))
    return found


def _until(starts: Sequence[float], since_s: float, end_s: float) -> float:
    return min((start_s for start_s in starts if since_s < start_s < end_s), default=end_s)
