"""What must hold of a run, whatever happened in it.

A server that fails everything in clear words does not pass: a request may fail only where its plan
used a seat that was lost, or its decode server was, and most must be right all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from bench.servers.chaos.record import Death, Outcome, Run, Strike
from bench.servers.chaos.scenario import Checks

LEFT_WITHIN_S = 10.0
"""A request that its client gave up ends within this time, as in the storm."""

CLOCKS_S = 1.0
"""How far the times of this program and of the server may be apart."""

DEMANDED = "the plan that the request demands names"
"""Of what the pool tells those who demand an instance that is out of use."""

SHOWN = 5
"""Lines of a check's detail."""


@dataclass(frozen=True)
class Verdict:
    """A check's name, what it found wrong, a line each, and what it looked at."""

    name: str
    wrong: tuple[str, ...]
    looked_at: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing was wrong."""
        return not self.wrong


@dataclass(frozen=True)
class Loss:
    """Why requests may fail.

    Attributes:
        seat: that was lost, None for the decode server.
        from_s, until_s: from the fault to when nothing of it can be felt, wall clock.
    """

    seat: int | None
    from_s: float
    until_s: float


def judge(run: Run, checks: Checks) -> list[Verdict]:
    """All verdicts on a run."""
    losses, refused = losses_of(run), refusals(run)
    all_of_it = run
    # Who demands an instance that is out of use is refused, and nothing is wrong with that.
    run = replace(run, outcomes=tuple(o for o in run.outcomes if o.rid not in refused))
    return [
        Verdict("the run itself", run.broken),
        _verdict("every event was carried out", _left_out(run), f"{len(run.strikes)} events"),
        _verdict("answers are stock's", _wrong_answers(run), f"{_answered(run)} answers"),
        _verdict("who fails had a lost part", _innocent(run, losses), f"{_failed(run)} failed"),
        _verdict(
            "errors come in time",
            chain(_late(run, losses, checks), _refused_late(all_of_it, refused, checks)),
            f"{_failed(run)} failed, {len(refused)} refused",
        ),
        _verdict("errors say what was lost", _unclear(run, losses), f"{_failed(run)} failed"),
        _verdict("most are right", _too_few(run, checks), _share(run)),
        _verdict("tokens go on", _none_resumed(run, checks), f"{len(resumed(run))} computed anew"),
        _verdict("deaths are those that were caused", _deaths(run), f"{len(run.deaths)} deaths"),
        _verdict("seats come back", _back(run, checks), f"{len(run.seats)} seats"),
        _verdict("slots are free", _slots(run), f"{len(run.slots_after)} seats and decode"),
        _verdict("new requests are right", _after(run), f"{len(run.after)} requests"),
    ]


def losses_of(run: Run) -> list[Loss]:
    """The losses that happened: deaths that somebody caused, and decode's absences."""
    found = [Loss(None, away.from_s, away.until_s) for away in run.away]
    for death in run.deaths:
        strike = _cause(run, death)
        if strike is not None:
            found.append(Loss(death.seat, strike.at_s, death.at_s))
    return found


def refusals(run: Run) -> dict[str, float]:
    """Failed requests that demand an instance which was out of use, and since when, by id.

    Out of use is a seat that somebody has drained, or that died for the last time; not one that
    comes back by itself, for which such requests wait.
    """
    spans = [
        (strike.event.seat, strike.at_s)
        for strike in run.strikes
        if strike.event.do == "drain" and not strike.note
    ]
    spans += [(death.seat, death.at_s) for death in run.deaths if death.back_s is None]
    found: dict[str, float] = {}
    for outcome in run.outcomes:
        if not outcome.failed or DEMANDED not in outcome.words:
            continue
        for seat, from_s in spans:
            if seat in outcome.demands and _out_of_use(outcome, run, seat, from_s):
                found[outcome.rid] = max(from_s, outcome.sent_s)
    return found


def _out_of_use(outcome: Outcome, run: Run, seat: int | None, from_s: float) -> bool:
    starts = (s.at_s for s in run.strikes if s.event.do == "start" and s.event.seat == seat)
    until_s = min((at_s for at_s in starts if at_s > from_s), default=math.inf)
    return outcome.ended_s >= from_s - CLOCKS_S and outcome.sent_s <= until_s + CLOCKS_S


def excuse(outcome: Outcome, run: Run, losses: list[Loss]) -> Loss | None:
    """The loss that explains a failed request, None if none does."""
    for loss in losses:
        if outcome.ended_s < loss.from_s - CLOCKS_S or outcome.sent_s > loss.until_s + CLOCKS_S:
            continue
        if loss.seat is None or loss.seat in _touched(outcome, run, loss):
            return loss
    return None


def _touched(outcome: Outcome, run: Run, loss: Loss) -> frozenset[int]:
    """The seats that held or ran part of a request when the loss was noticed."""
    seats: set[int] = set()
    for rid in outcome.ids:
        line = run.plans.get(rid)
        if line is not None:
            seats |= line.touched(loss.until_s)
        elif any(start <= outcome.ended_s <= end for start, end in run.unlogged):
            # The log's disk was full: what the client was told has to do.
            named = f"instance {loss.seat}"
            seats |= {loss.seat} if named in outcome.words and loss.seat is not None else set()
    return frozenset(seats)


def _cause(run: Run, death: Death) -> Strike | None:
    """The last deadly event at the seat before the death; None if there is none."""
    before = [
        strike
        for strike in run.strikes
        if strike.event.seat == death.seat
        and strike.event.kind.deadly
        and not strike.note
        and strike.at_s <= death.at_s + CLOCKS_S
    ]
    return max(before, key=lambda strike: strike.at_s, default=None)


def _verdict(name: str, wrong: Iterator[str], looked_at: str) -> Verdict:
    return Verdict(name, tuple(wrong), looked_at)


def _left_out(run: Run) -> Iterator[str]:
    for strike in run.strikes:
        if strike.note:
            yield f"{strike.event.words} was not carried out: {strike.note}"


def _wrong_answers(run: Run) -> Iterator[str]:
    for outcome in run.outcomes:
        if outcome.how == "answered" and outcome.right is not True:
            yield f"{outcome.rid} ({outcome.kind}): the answer is not stock's"


def _innocent(run: Run, losses: list[Loss]) -> Iterator[str]:
    for outcome in run.outcomes:
        if outcome.failed and excuse(outcome, run, losses) is None:
            yield (
                f"{outcome.rid} ({outcome.kind}) failed and none of its parts was lost: "
                f"{outcome.status} {outcome.words[:160]}"
            )


def _late(run: Run, losses: list[Loss], checks: Checks) -> Iterator[str]:
    for outcome in run.outcomes:
        if outcome.left_s > LEFT_WITHIN_S:
            yield f"{outcome.rid} ({outcome.kind}) ended {outcome.left_s:.1f} s after it was left"
        if not outcome.failed:
            continue
        loss = excuse(outcome, run, losses)
        if loss is not None and (after_s := outcome.ended_s - loss.from_s) > checks.error_within_s:
            yield f"{outcome.rid} ({outcome.kind}) ended {after_s:.1f} s after the loss"


def _refused_late(run: Run, refused: Mapping[str, float], checks: Checks) -> Iterator[str]:
    for outcome in run.outcomes:
        since_s = refused.get(outcome.rid)
        if since_s is not None and outcome.ended_s - since_s > checks.error_within_s:
            yield f"{outcome.rid} was refused only {outcome.ended_s - since_s:.1f} s after it could"


def _unclear(run: Run, losses: list[Loss]) -> Iterator[str]:
    for outcome in run.outcomes:
        loss = excuse(outcome, run, losses) if outcome.failed else None
        if loss is None or loss.seat is None or f"instance {loss.seat}" in outcome.words:
            continue
        yield f"{outcome.rid} ({outcome.kind}) is not told of instance {loss.seat}: " + (
            f"{outcome.status} {outcome.words[:300]}"
        )


def _too_few(run: Run, checks: Checks) -> Iterator[str]:
    wanted = [outcome for outcome in run.outcomes if outcome.wanted]
    right = sum(outcome.right is True for outcome in wanted)
    if not wanted:
        yield "there was no request to answer: give the load more seconds or a higher rate"
    elif right < checks.right * len(wanted):
        yield f"{right} of {len(wanted)} are right, less than {checks.right:.0%}"


def resumed(run: Run) -> tuple[Outcome, ...]:
    """Right answers that had another plan before: they were computed anew."""
    return tuple(
        outcome
        for outcome in run.outcomes
        if outcome.right and any(rid in run.plans and run.plans[rid].recalls for rid in outcome.ids)
    )


def _none_resumed(run: Run, checks: Checks) -> Iterator[str]:
    found = len(resumed(run))
    if found < checks.resumed:
        yield (
            f"{found} right answers were computed anew, not {checks.resumed}: give the load longer "
            "outputs, or more faults"
        )


def _deaths(run: Run) -> Iterator[str]:
    claimed: list[Strike] = []
    for death in sorted(run.deaths, key=lambda death: death.at_s):
        cause = _cause(run, death)
        if cause is None or cause in claimed:
            yield f"seat {death.seat} died and nobody had done anything to it: {death.cause}"
        else:
            claimed.append(cause)
    for strike in run.strikes:
        if strike.event.kind.deadly and not strike.note and strike not in claimed:
            # One that goes on before anybody has to notice is not dead.
            if strike.event.do == "stop" and strike.event.for_s is not None:
                continue
            yield f"{strike.event.words}: the server tells of no death"


def _back(run: Run, checks: Checks) -> Iterator[str]:
    if not run.seats:
        yield "the server told nothing of its seats at the end"
    for seat in run.seats:
        if seat.seat in checks.down:
            if seat.state != "down" or not seat.reason:
                yield f"seat {seat.seat} is {seat.state} ({seat.reason}), not down with a reason"
        elif seat.state != "up":
            yield f"seat {seat.seat} is {seat.state} at the end: {seat.reason}"
    worn_out = {death.seat for death in run.deaths} & set(checks.down)
    if worn_out and not run.degraded:
        yield f"seats {sorted(worn_out)} stay down, and the log does not say degraded"
    if run.health != 200:
        yield f"/health_generate is {run.health} at the end"
    for death in run.deaths:
        if death.back_s is None or death.seat in checks.down:
            continue
        strike = _cause(run, death)
        took_s = death.back_s - (strike.at_s if strike is not None else death.at_s)
        if took_s > checks.back_within_s:
            yield f"seat {death.seat} was back only {took_s:.0f} s after it was lost"


def _slots(run: Run) -> Iterator[str]:
    up = [seat.seat for seat in run.seats if seat.state == "up"]
    for seat in up:
        before, after = run.slots_before.get(seat), run.slots_after.get(seat)
        if before is None or after != before:
            yield f"seat {seat} has {after} free slots, {before} at the start"
    if run.decode_used:
        yield f"decode still holds {run.decode_used} slots"


def _after(run: Run) -> Iterator[str]:
    for seat in run.seats:
        if seat.state == "up" and not run.after.get(seat.seat, False):
            yield f"a new request on seat {seat.seat} is not answered right"


def _answered(run: Run) -> int:
    return sum(outcome.how == "answered" for outcome in run.outcomes)


def _failed(run: Run) -> int:
    return sum(outcome.failed for outcome in run.outcomes)


def _share(run: Run) -> str:
    wanted = [outcome for outcome in run.outcomes if outcome.wanted]
    right = sum(outcome.right is True for outcome in wanted)
    return f"{right} of {len(wanted)}"
