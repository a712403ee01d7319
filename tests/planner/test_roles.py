"""Roles of seats: what a command line and an update may say of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.roles import Role, Roles, parse_roles, read_roles, roles_of

ANY_ROLES = st.lists(st.sampled_from(Role), min_size=1, max_size=9).filter(
    lambda roles: any(r.prefills for r in roles) and any(r.decodes for r in roles)
)


def test_the_first_prefill_and_the_last_decode() -> None:
    roles = parse_roles("6p2d")
    assert roles.prefill == frozenset(range(6))
    assert roles.decode == {6, 7}


def test_a_seat_of_both_does_both() -> None:
    roles = parse_roles("2p1d1b")
    assert roles.prefill == {0, 1, 3}
    assert roles.decode == {2, 3}


@settings(deadline=None)
@given(ANY_ROLES)
def test_roles_are_shown_as_they_are_written(seats: list[Role]) -> None:
    roles = Roles(tuple(seats))
    assert parse_roles(str(roles)) == roles


@pytest.mark.parametrize("text", ["p", "6p2x", "2d-1p", "6p 2d", "2p,2d", "-1p2d", "p2d2", "0p0d"])
def test_other_forms_are_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(OptionError, match=r"6p2d|another role"):
        parse_roles(text)


@pytest.mark.parametrize(("text", "missing"), [("4p", "decodes"), ("4d", "prefills")])
def test_somebody_prefills_and_somebody_decodes(text: str, missing: str) -> None:
    with pytest.raises(OptionError, match=f"no instance that {missing}"):
        parse_roles(text)


def test_a_slip_of_the_keyboard_fills_no_memory() -> None:
    with pytest.raises(OptionError, match="more seats than any pool"):
        parse_roles("600000000000p2d")


def test_the_counts_are_those_of_the_pool() -> None:
    assert roles_of("", 3) == Roles.all_both(3)
    with pytest.raises(OptionError, match="8 instances, the pool has 4"):
        roles_of("6p2d", 4)


def test_an_update_turns_the_seats_that_it_names() -> None:
    before = parse_roles("2p2d")
    assert str(read_roles({"3": "both", "0": "decode"}, before)) == "1d1p1d1b"
    assert str(read_roles("3p1d", before)) == "3p1d"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"4": "decode"}, "no seat '4'"),
        ({3: "decode"}, "no seat 3"),
        ({"3": "sleep"}, "cannot be told 'sleep'"),
        ({"3": ["decode"]}, "cannot be told"),
        ({"2": "prefill", "3": "prefill"}, "no instance that decodes"),
        ({}, "like"),
        ([], "like"),
        ("", "form of roles"),
        ("5p", "no instance that decodes"),
    ],
)
def test_an_update_that_is_refused_says_why(raw: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        read_roles(raw, parse_roles("2p2d"))
