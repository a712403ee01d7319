"""The killer's schedules: every kind, no seat more often than allowed, the same for a seed."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.servers.chaos.killer import HEAD_S, TAIL, drawn, most_faults, resolved
from bench.servers.chaos.read import parse
from bench.servers.chaos.scenario import DEATHS_A_SEAT, KILLER_KINDS, KINDS, Killer

killers = st.sets(st.sampled_from(KILLER_KINDS), min_size=1).flatmap(
    lambda kinds: st.builds(
        Killer, faults=st.integers(len(kinds), 40), kinds=st.just(tuple(sorted(kinds)))
    )
)


@settings(deadline=None)
@given(killers, st.integers(2, 8), st.integers(0, 1 << 31), st.floats(30.0, 1000.0))
def test_a_schedule_keeps_the_rules(
    killer: Killer, instances: int, seed: int, seconds: float
) -> None:
    most = most_faults(killer, instances)
    if most is not None and killer.faults > most:
        with pytest.raises(ValueError, match="cannot be drawn"):
            drawn(killer, seconds=seconds, instances=instances, rng=random.Random(seed))
        return
    events = drawn(killer, seconds=seconds, instances=instances, rng=random.Random(seed))
    assert len(events) == killer.faults
    assert {event.do for event in events} == set(killer.kinds)
    deaths = Counter(event.seat for event in events if event.kind.deadly)
    assert all(count <= DEATHS_A_SEAT for count in deaths.values())
    for event in events:
        assert HEAD_S <= event.at_s <= seconds * (1 - TAIL)
        assert (event.seat in range(instances)) == KINDS[event.do].seat
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    assert events == drawn(killer, seconds=seconds, instances=instances, rng=random.Random(seed))


def test_the_default_killer_has_twelve_faults_of_every_kind() -> None:
    scenario = parse("[load]\nseconds = 600\n[killer]\n", name="x")
    for seed in range(50):
        events = resolved(parse(f"seed = {seed}\n[load]\nseconds = 600\n[killer]\n", name="x"))
        assert len(events) >= 12
        assert {event.do for event in events} == set(KILLER_KINDS)
    assert resolved(scenario) == resolved(scenario)


def test_seeds_differ() -> None:
    texts = [f"seed = {seed}\n[killer]\n" for seed in range(5)]
    assert len({resolved(parse(text, name="x")) for text in texts}) == 5


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8))
def test_drawn_seats_die_evenly(seed: int, count: int) -> None:
    event = '[[events]]\nat_s = 1\ndo = "kill"\nseat = "drawn"\n'
    events = resolved(parse(f"seed = {seed}\n" + event * count, name="x"))
    deaths = Counter(event.seat for event in events)
    assert max(deaths.values()) <= -(-count // 4)


def test_a_load_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="too short"):
        drawn(Killer(), seconds=HEAD_S, instances=4, rng=random.Random(0))
