"""What a run leaves behind: the facts that the checks look at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.servers.chaos.scenario import Event


@dataclass(frozen=True)
class Outcome:
    """How a request ended; times are seconds on the wall clock.

    Attributes:
        rid, ids: the request's id, and the ids of its prompts in the plan log.
        kind: of ``scenario.MIX``.
        how: "answered", "left" or "error".
        wanted: whether nobody gave it up, so that it had to be answered.
        right: of an answer, whether it is stock's; None without one.
        words, status: of an error.
        left_s: of one that was given up, seconds from then to its end.
        demands: seats of the plans that it brings.
    """

    rid: str
    ids: tuple[str, ...]
    kind: str
    sent_s: float
    ended_s: float
    how: str
    wanted: bool = True
    right: bool | None = None
    words: str = ""
    status: int = 0
    left_s: float = 0.0
    demands: tuple[int, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it had to be answered and was not."""
        return self.wanted and self.how != "answered"


@dataclass(frozen=True)
class Planned:
    """A chunk of a line of the plan log: its instances, and when it ended, None if it did not."""

    instances: tuple[int, ...]
    end_s: float | None


@dataclass(frozen=True)
class PlanLine:
    """What the plan log says of a request; times are seconds on the wall clock.

    Attributes:
        bound_s: when it got its plan, the last one if it had several; None if it got none.
        lost: instances that were lost since then, while it had a part there.
        recalls: how many plans it had before that one.
        resumed_tokens: of output that it had when it got that one.
        moves: how often it moved to another home.
    """

    rid: str
    arrival_s: float
    chunks: tuple[Planned, ...] = ()
    outcome: str = ""
    error: str = ""
    bound_s: float | None = None
    lost: frozenset[int] = frozenset()
    recalls: int = 0
    resumed_tokens: int = 0
    moves: int = 0

    def touched(self, at_s: float) -> frozenset[int]:
        """The instances that held KV of it, or ran a chunk of it or were about to, at a time."""
        seats = set(self.lost)
        if self.bound_s is not None and self.bound_s > at_s:
            return frozenset()
        for chunk in self.chunks:
            seats.update(chunk.instances)
            if chunk.end_s is None or chunk.end_s > at_s:
                break
        return frozenset(seats)


@dataclass(frozen=True)
class Strike:
    """An event that was carried out.

    Attributes:
        event: which.
        at_s: when, on the wall clock.
        note: why it was not, "" if it was.
    """

    event: Event
    at_s: float
    note: str = ""


@dataclass(frozen=True)
class Death:
    """A death of a seat as the server tells it.

    Attributes:
        seat: which.
        at_s: when the server noticed, on the wall clock.
        cause: its words.
        back_s: when the next life took part, None if none did.
    """

    seat: int
    at_s: float
    cause: str = ""
    back_s: float | None = None


@dataclass(frozen=True)
class Away:
    """Decode was gone: from its end to when it answered again."""

    from_s: float
    until_s: float


@dataclass(frozen=True)
class Seat:
    """A seat as the server tells it at the end."""

    seat: int
    state: str
    incarnation: int = 1
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """All facts of a run.

    Attributes:
        outcomes: of all requests.
        plans: lines of the plan log by request id.
        strikes: what was done.
        deaths: what the server says of its seats.
        away: when there was no decode server.
        unlogged: when the plan log could not be written, as (from, until).
        seats: at the end.
        slots: free KV slots by seat at the start and at the end; only seats that answer.
        decode_used: KV slots in use on decode at the end.
        after: by seat that is up at the end, whether a new request on it was answered right.
        health: status of ``/health_generate`` at the end.
        degraded: whether the server's log says that the pool is degraded.
        broken: what stopped the run itself, a line each.
    """

    outcomes: tuple[Outcome, ...]
    plans: Mapping[str, PlanLine] = field(default_factory=dict)
    strikes: tuple[Strike, ...] = ()
    deaths: tuple[Death, ...] = ()
    away: tuple[Away, ...] = ()
    unlogged: tuple[tuple[float, float], ...] = ()
    seats: tuple[Seat, ...] = ()
    slots_before: Mapping[int, int] = field(default_factory=dict)
    slots_after: Mapping[int, int] = field(default_factory=dict)
    decode_used: int = 0
    after: Mapping[int, bool] = field(default_factory=dict)
    health: int = 200
    degraded: bool = False
    broken: tuple[str, ...] = ()


def read_plans(paths: Iterable[Path]) -> dict[str, PlanLine]:
    """Read plan logs; lines of other kinds and torn ones, which a full disk leaves, are skipped."""
    found: dict[str, PlanLine] = {}
    for path in paths:
        if not path.exists():
            continue
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            line = _plan_line(text)
            if line is not None:
                found[line.rid] = line
    return found


def _plan_line(text: str) -> PlanLine | None:
    try:
        data: Any = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(data, dict) or "rid" not in data or "chunks" not in data:
        return None
    arrival_s = float(data["arrival_unix_s"])
    chunks = tuple(
        Planned(
            tuple(chunk["instances"]),
            None if chunk["end_s"] is None else arrival_s + chunk["end_s"],
        )
        for chunk in data["chunks"]
    )
    bound_s = data.get("bound_s")
    return PlanLine(
        str(data["rid"]),
        arrival_s,
        chunks,
        str(data.get("outcome", "")),
        str(data.get("error") or ""),
        None if bound_s is None else arrival_s + bound_s,
        lost=frozenset(data.get("lost_instances", ())),
        recalls=int(data.get("recalls", 0)),
        resumed_tokens=int(data.get("resumed_tokens", 0)),
        moves=len(data.get("moves", ())),
    )
