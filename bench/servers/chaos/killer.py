"""Faults drawn by a seed: every kind, at random times, on random seats."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

from bench.servers.chaos.scenario import DEATHS_A_SEAT, KINDS, Event, Killer, Scenario

HEAD_S = 5.0
"""Nothing happens before: the load is to be under way."""

TAIL = 0.1
"""Nothing happens in this last share of the load: what was lost is to come back under it."""

SHORT_STOP_S, LONG_STOP_S = (0.2, 0.6), (20.0, 40.0)
"""A stop that nobody needs to notice, and one after which the process wakes up long dead."""


def most_faults(killer: Killer, instances: int) -> int | None:
    """How many faults can be drawn; None for any number."""
    if any(not KINDS[do].deadly for do in killer.kinds):
        return None
    return DEATHS_A_SEAT * instances


def drawn(killer: Killer, *, seconds: float, instances: int, rng: random.Random) -> list[Event]:
    """Draw a schedule.

    Every kind comes once at least, no seat dies more than ``DEATHS_A_SEAT`` times, and times are
    spread evenly with some jitter.

    Args:
        killer: how many and which; its kinds fit, see ``most_faults``.
        seconds: of the load.
        instances: seats of the pool.
        rng: what draws.

    Raises:
        ValueError: that cannot be kept.
    """
    doings = _kinds(killer, instances, rng)
    step_s = (seconds * (1 - TAIL) - HEAD_S) / len(doings)
    if step_s <= 0:
        raise ValueError(f"a load of {seconds:g} s is too short for a killer: give it more")
    deaths: Counter[int] = Counter()
    last, events = -1, []
    for number, do in enumerate(doings):
        at_s = round(HEAD_S + step_s * (number + rng.uniform(0.1, 0.9)), 2)
        seat = None
        if KINDS[do].seat:
            seat = _seat(range(instances), deaths, last, rng, deadly=KINDS[do].deadly)
            last = seat
            deaths[seat] += KINDS[do].deadly
        events.append(_event(at_s, do, seat, step_s, rng))
    return events


def resolved(scenario: Scenario) -> tuple[Event, ...]:
    """The scenario's events in order, the killer's among them, with seats in place of drawn ones.

    A seat that dies by a drawn event is one of those that died least by the scenario so far.
    """
    rng = random.Random(f"events {scenario.seed}")
    instances = scenario.servers.instances
    events = list(scenario.events)
    if scenario.killer is not None:
        events += drawn(
            scenario.killer, seconds=scenario.load.seconds, instances=instances, rng=rng
        )
    events.sort(key=lambda event: event.at_s)
    deaths: Counter[int] = Counter()
    found = []
    for event in events:
        seat = event.seat
        if seat is None and event.kind.seat:
            least = min(deaths[seat] for seat in range(instances))
            seat = rng.choice([seat for seat in range(instances) if deaths[seat] == least])
        if seat is not None:
            deaths[seat] += event.kind.deadly
        found.append(dataclasses.replace(event, seat=seat))
    return tuple(found)


def _kinds(killer: Killer, instances: int, rng: random.Random) -> list[str]:
    room = DEATHS_A_SEAT * instances
    doings = list(killer.kinds)
    harmless = [do for do in killer.kinds if not KINDS[do].deadly]
    deaths = sum(KINDS[do].deadly for do in doings)
    while len(doings) < killer.faults:
        do = rng.choice(killer.kinds if deaths < room else harmless or [""])
        if not do:
            break
        deaths += KINDS[do].deadly
        doings.append(do)
    if len(doings) != killer.faults or deaths > room:
        raise ValueError(
            f"{killer.faults} faults of the kinds {', '.join(killer.kinds)} cannot be drawn for "
            f"{instances} seats that die {DEATHS_A_SEAT} times each at most"
        )
    rng.shuffle(doings)
    return doings


def _seat(
    seats: Sequence[int],
    deaths: Counter[int],
    last: int,
    rng: random.Random,
    *,
    deadly: bool,
) -> int:
    """A seat that may die once more, another than the last one where there is one."""
    able = [seat for seat in seats if not deadly or deaths[seat] < DEATHS_A_SEAT]
    return rng.choice([seat for seat in able if seat != last] or able)


def _event(at_s: float, do: str, seat: int | None, step_s: float, rng: random.Random) -> Event:
    event = Event(at_s, do, seat)
    if do == "stop":
        low, high = rng.choice((SHORT_STOP_S, LONG_STOP_S))
        return dataclasses.replace(event, for_s=round(rng.uniform(low, high), 2))
    if do == "exception":
        return dataclasses.replace(event, moment=rng.choice(("turn", "layer")))
    if do == "slow-link":
        delay_s = round(rng.uniform(0.02, 0.2), 3)
        return dataclasses.replace(event, delay_s=delay_s, for_s=round(min(20.0, step_s / 2), 2))
    if do == "full-disk":
        return dataclasses.replace(event, for_s=round(min(20.0, step_s / 2), 2))
    if do == "decode-restart":
        return dataclasses.replace(event, for_s=round(rng.uniform(0.0, 2.0), 2))
    return event
