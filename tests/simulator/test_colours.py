"""One colour a policy in every figure."""

from __future__ import annotations

import re
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner.policies.registry import POLICIES
from sglang_cdsp.simulator.colours import COLOURS, LINES, OTHERS, looks
from sglang_cdsp.simulator.sweep import UNIFIED

KNOWN = [entry.name for entry in POLICIES]
NAMES = st.sampled_from([*KNOWN, UNIFIED, "fixed-sp:8", "fixed-sp:16", "threshold:9", "a.py:B"])


def test_every_policy_has_a_colour_of_its_own() -> None:
    assert {*KNOWN, UNIFIED} == COLOURS.keys()
    assert len({*COLOURS.values(), *OTHERS}) == len(COLOURS) + len(OTHERS)
    for colour in (*COLOURS.values(), *OTHERS):
        assert re.fullmatch("#[0-9a-f]{6}", colour)


@given(st.lists(NAMES, unique=True, max_size=len(LINES)), st.lists(NAMES, unique=True, max_size=4))
def test_a_policy_keeps_its_colour_and_no_two_look_alike(one: list[str], other: list[str]) -> None:
    first, second = looks(one), looks(other)
    assert list(first) == one
    assert all(a != b for a, b in combinations(first.values(), 2))
    for name in {*first} & {*second}:
        assert first[name].colour == second[name].colour


def test_policies_from_outside_differ() -> None:
    names = [f"mine.py:P{n}" for n in range(len(OTHERS))]
    assert [look.colour for look in looks(names).values()] == list(OTHERS)
