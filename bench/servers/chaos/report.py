"""What a run is told by: JSON lines with every fact, and a table of the verdicts."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bench.servers.chaos.checks import SHOWN, Verdict, excuse, losses_of, resumed
from bench.servers.chaos.record import Death, Outcome, Run, Strike
from bench.servers.chaos.scenario import Scenario


def json_lines(scenario: Scenario, run: Run, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Every fact and verdict, a line each; ``kind`` says what a line is."""
    records: list[dict[str, Any]] = [{"kind": "scenario", **asdict(scenario)}]
    records += [{"kind": "strike", **asdict(strike)} for strike in run.strikes]
    records += [{"kind": "death", **asdict(death)} for death in run.deaths]
    records += [{"kind": "away", **asdict(away)} for away in run.away]
    records += [{"kind": "seat", **asdict(seat)} for seat in run.seats]
    records += [{"request": outcome.kind, **_request(outcome, run)} for outcome in run.outcomes]
    records += [{"kind": "verdict", "holds": v.holds, **asdict(v)} for v in verdicts]
    return (json.dumps(record) for record in records)


def table(scenario: Scenario, run: Run, verdicts: Sequence[Verdict]) -> str:
    """The run for people, as Markdown."""
    lines = [
        f"scenario {scenario.name}, seed {scenario.seed}: {_ends(run)}",
        "",
        "| check | | of |",
        "|---|---|---|",
        *(f"| {v.name} | {'yes' if v.holds else '**no**'} | {v.looked_at} |" for v in verdicts),
        "",
        "| event | at | noticed after | back after |",
        "|---|---|---|---|",
        *_events(run),
    ]
    for verdict in verdicts:
        lines += [f"{verdict.name}: {line}" for line in verdict.wrong[:SHOWN]]
        if len(verdict.wrong) > SHOWN:
            lines.append(f"{verdict.name}: and {len(verdict.wrong) - SHOWN} more")
    return "\n".join(lines)


def _request(outcome: Any, run: Run) -> dict[str, Any]:
    loss = excuse(outcome, run, losses_of(run)) if outcome.failed else None
    return {**asdict(outcome), "kind": "request", "loss": asdict(loss) if loss else None}


def _ends(run: Run) -> str:
    counts = Counter(
        "right" if o.right else "wrong" if o.how == "answered" else o.how for o in run.outcomes
    )
    text = ", ".join(f"{count} {how}" for how, count in counts.most_common())
    moved = sum(outcome.right is True and _moves(outcome, run) > 0 for outcome in run.outcomes)
    again = resumed(run)
    if moved or again:
        in_middle = sum(
            any(rid in run.plans and run.plans[rid].resumed_tokens for rid in outcome.ids)
            for outcome in again
        )
        text += (
            f"; of those that are right {len(again)} were computed anew ({in_middle} had output), "
            f"{moved} moved"
        )
    losses = losses_of(run)
    late = [
        outcome.ended_s - loss.from_s
        for outcome in run.outcomes
        if outcome.failed and (loss := excuse(outcome, run, losses)) is not None
    ]
    if not late:
        return text
    return f"{text}; errors {statistics.median(late):.1f} s (most {max(late):.1f} s) after the loss"


def _moves(outcome: Outcome, run: Run) -> int:
    """How often an answer moved to another home."""
    return sum(run.plans[rid].moves for rid in outcome.ids if rid in run.plans)


def _events(run: Run) -> Iterator[str]:
    begin_s = min((outcome.sent_s for outcome in run.outcomes), default=0.0)
    for strike in sorted(run.strikes, key=lambda strike: strike.at_s):
        death = _death_by(strike, run)
        noticed = back = ""
        if death is not None:
            noticed = f"{max(0.0, death.at_s - strike.at_s):.1f} s: {death.cause}"
            back = "-" if death.back_s is None else f"{death.back_s - strike.at_s:.0f} s"
        words = f"{strike.event.words} ({strike.note})" if strike.note else strike.event.words
        yield f"| {words} | {strike.at_s - begin_s:.0f} s | {noticed} | {back} |"


def _death_by(strike: Strike, run: Run) -> Death | None:
    """The death that an event has caused; not one that a later event on that seat has."""
    seat = strike.event.seat
    if not strike.event.kind.deadly:
        return None
    begins = (other.at_s for other in run.strikes if other.event.seat == seat)
    until_s = min((at_s for at_s in begins if at_s > strike.at_s), default=math.inf)
    return next(
        (
            death
            for death in run.deaths
            if death.seat == seat and strike.at_s - 1.0 <= death.at_s < until_s - 1.0
        ),
        None,
    )
