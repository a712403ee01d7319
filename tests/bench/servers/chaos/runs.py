"""A run in which a seat was killed and all else is well, to be changed by tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.servers.chaos.record import Death, Outcome, PlanLine, Planned, Run, Seat, Strike
from bench.servers.chaos.scenario import Event

KILLED_S = 100.0
"""When seat 1 was killed."""

KILL = Strike(Event(10.0, "kill", 1), KILLED_S)
DEATH = Death(1, KILLED_S + 0.5, "killed", back_s=KILLED_S + 30.0)


def request(number: int, *, sent_s: float, ended_s: float, **fields: Any) -> Outcome:
    how = fields.pop("how", "answered")
    right = True if how == "answered" else None
    base = {"rid": f"r{number}", "ids": (f"r{number}",), "kind": "short", "right": right}
    return Outcome(**{**base, **fields}, sent_s=sent_s, ended_s=ended_s, how=how)


def line(number: int, seats: list[tuple[tuple[int, ...], float | None]], arrival_s: float) -> Any:
    chunks = tuple(Planned(instances, end_s) for instances, end_s in seats)
    return f"r{number}", PlanLine(f"r{number}", arrival_s, chunks)


def good_run(**fields: Any) -> Run:
    """Twenty requests, of which one was on seat 1 when it was killed; all else is well."""
    answered = [request(i, sent_s=90.0 + i, ended_s=92.0 + i) for i in range(19)]
    lost = request(
        19, sent_s=98.0, ended_s=101.0, how="error", words="instance 1 was lost", status=503
    )
    plans = dict(line(i, [((i % 3,), 91.0 + i)], 90.0 + i) for i in range(19))
    plans.update([line(19, [((0,), 99.0), ((0, 1), None)], 98.0)])
    run = Run(
        outcomes=(*answered, lost),
        plans=plans,
        strikes=(KILL,),
        deaths=(DEATH,),
        seats=tuple(Seat(seat, "up") for seat in range(3)),
        slots_before=dict.fromkeys(range(3), 1000),
        slots_after=dict.fromkeys(range(3), 1000),
        after=dict.fromkeys(range(3), True),
    )
    return dataclasses.replace(run, **fields)
