"""One cell of the matrix on a running pool: requests around the fault, and what became of them."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.servers.chaos.checks import judge
from bench.servers.chaos.load import Question
from bench.servers.chaos.observed import Observed, Pool, References
from bench.servers.chaos.record import Death, Outcome, Run, Strike
from bench.servers.chaos.scenario import Checks, Event
from bench.servers.matrix.cells import Cell, Result, Told
from bench.servers.storm_jobs import Job, Prompt
from sglang_cdsp.testing.first_token import prompt_tokens

INSTANCES = {1: 3, 2: 2}
"""Seats of the pool, by ranks of each: those of two ranks take twice the memory."""

VICTIM = 1

CHUNK, LATER = 1200, 600
"""Tokens of a plan's two chunks."""

AHEAD_S = 0.3
"""How long a fault that is ordered lies there before the requests that bring its moment come."""

PAUSE_S = 0.5
"""Less than what a process may be stopped."""

CHECKS = Checks(right=0.0, back_within_s=180.0)
"""One fault among few requests: how many fail is told, not judged."""

_ASKS: tuple[tuple[str, Any], ...] = (("max_new_tokens", 4),)


def plans(instances: int) -> dict[str, list[tuple[int, list[int]]]]:
    """A plan for each part that a request can have in the victim: its home, a member, none."""
    other = (VICTIM + 1) % instances
    rest = [seat for seat in range(instances) if seat not in (VICTIM, other)]
    return {
        "home": [(CHUNK, [VICTIM]), (LATER, [VICTIM, other])],
        "member": [(CHUNK, [other, VICTIM]), (LATER, [other, VICTIM])],
        "later": [(CHUNK, [other]), (LATER, [other, VICTIM])],
        "elsewhere": [(CHUNK, [other]), (LATER, [other, *rest])],
    }


def prompt_of(part: str) -> Prompt:
    """The prompt of each part, different from the others."""
    seed = ("home", "member", "later", "elsewhere").index(part)
    return tuple(prompt_tokens(seed, CHUNK + LATER))


def questions() -> list[Question]:
    """What stock is asked before."""
    return [Question(prompt_of(part), _ASKS) for part in plans(2)]


def event_of(cell: Cell) -> Event:
    """The cell's fault, at its last rank."""
    paused = cell.way == "pause"
    return Event(
        at_s=0.0,
        do="stop" if paused else cell.way,
        seat=VICTIM,
        rank=cell.tp - 1,
        state="any",
        moment="start" if cell.moment == "restart" else cell.moment,
        for_s=PAUSE_S if paused else None,
    )


def run_cell(cell: Cell, pool: Pool, references: References, instances: int) -> Result:
    """Run a cell on a pool of so many seats, all of which are up."""
    with Observed(pool, instances) as seen, ThreadPoolExecutor(8) as threads:
        seen.watch.wait(dict.fromkeys(range(instances), "up"), CHECKS.back_within_s)
        strike = threads.submit(seen.striker.strike, event_of(cell))
        strikes: list[Strike] = []
        if cell.moment == "restart":
            kill = Event(0.0, "kill", VICTIM, rank=cell.tp - 1)
            strikes.append(seen.striker.strike(kill))
            parts = ["elsewhere"]
        elif cell.moment == "idle":
            if cell.way == "pause":
                time.sleep(AHEAD_S)
            else:
                strike.result()
            parts = ["elsewhere", "home"]
        else:
            time.sleep(AHEAD_S)
            parts = ["home", "member", "later", "elsewhere"]
        asked = [
            threads.submit(seen.ask, part, _job(part, instances), references) for part in parts
        ]
        strikes.append(strike.result())
        outcomes = [future.result() for future in asked]
        facts = seen.facts(CHECKS, strikes, outcomes, references)
    return result_of(cell, facts, strikes[-1])


def result_of(cell: Cell, facts: Run, strike: Strike) -> Result:
    """What a cell's facts say."""
    death = next(
        (d for d in facts.deaths if d.seat == VICTIM and d.at_s >= strike.at_s - 0.5), None
    )
    clients = tuple(_told(outcome, strike) for outcome in facts.outcomes)
    errors = [told.after_s for told in clients if told.how == "error"]
    verdicts = judge(facts, CHECKS)
    return Result(
        cell,
        clients,
        error_s=max(errors, default=None),
        noticed_s=None if death is None else max(0.0, death.at_s - strike.at_s),
        cause="" if death is None else death.cause,
        back_s=_back(death, strike),
        slots=all(v.holds for v in verdicts if v.name == "slots are free"),
        wrong=tuple(f"{v.name}: {line}" for v in verdicts for line in v.wrong),
    )


def _back(death: Death | None, strike: Strike) -> float | None:
    if death is None or death.back_s is None:
        return None
    return death.back_s - strike.at_s


def _told(outcome: Outcome, strike: Strike) -> Told:
    how = outcome.how if outcome.how != "answered" else "right" if outcome.right else "wrong"
    after_s = outcome.ended_s - strike.at_s
    return Told(outcome.kind, how, after_s, outcome.status, outcome.words[:300])


def _job(part: str, instances: int) -> Job:
    rid = f"matrix-{part}-{os.urandom(4).hex()}"
    return Job(rid, (prompt_of(part),), (plans(instances)[part],), asks=dict(_ASKS))
