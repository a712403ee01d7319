"""Whose each flag is, and which flags `serve` cannot hand on."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.args import add_cli_args
from sglang_cdsp.form import Form
from sglang_cdsp.serve.asked import (
    CHOSEN,
    CHOSEN_BEHIND_A_ROUTER,
    refused,
    sort_flags,
    value_of,
)


def own_flags() -> list[tuple[str, ...]]:
    """Each of the pool's flags as it is written, with a value where it takes one."""
    parser = argparse.ArgumentParser(add_help=False)
    add_cli_args(parser)
    return [
        (action.option_strings[0],) if action.nargs == 0 else (action.option_strings[0], "7")
        for action in parser._actions
    ]


OURS = st.sampled_from([*own_flags(), ("--cdsp-policy=cdsp",), ("--cdsp-unheard-of", "3")])
OTHERS = st.sampled_from(
    [
        ("--mem-fraction-static", "0.5"),
        ("--context-length=4096",),
        ("--enable-metrics",),
        ("--extra-metric-labels", "a", "b"),
        ("-x", "-1"),
    ]
)
TAGGED = st.lists(st.one_of(OURS.map(lambda f: (True, f)), OTHERS.map(lambda f: (False, f))))


@given(TAGGED)
def test_every_word_goes_where_its_flag_does(flags: list[tuple[bool, tuple[str, ...]]]) -> None:
    found = sort_flags([word for _, words in flags for word in words])
    assert list(found.pool) == [word for ours, words in flags if ours for word in words]
    assert list(found.servers) == [word for ours, words in flags if not ours for word in words]


def test_a_word_too_many_is_left_to_sglangs_parser() -> None:
    found = sort_flags(["--cdsp-allow-request-plans", "yes", "--cdsp-policy", "cdsp", "and"])
    assert found.pool == ("--cdsp-allow-request-plans", "--cdsp-policy", "cdsp")
    assert found.servers == ("yes", "and")


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("flag", CHOSEN)
def test_what_serve_decides_is_refused_with_the_remedy(flag: str, form: Form) -> None:
    for words in ([flag, "x"], [f"{flag}=x"], ["--a", flag, flag]):
        [line] = refused(words, form)
        assert line.startswith(f"{flag}: ")
        assert "\n" not in line


@pytest.mark.parametrize("flag", CHOSEN_BEHIND_A_ROUTER)
def test_what_a_router_cannot_do_one_server_can(flag: str) -> None:
    assert refused([flag, "x"], Form.ONE_SERVER) == []
    [line] = refused([flag, "x"], Form.PREFILL)
    assert line.startswith(f"{flag}: ")


def test_all_others_are_handed_on() -> None:
    flags = ["--enable-metrics", "--context-length", "4096", "--cdsp-policy", "cdsp"]
    assert [refused(flags, form) for form in Form] == [[], []]


def test_the_last_value_of_a_flag_counts() -> None:
    words = ("--a", "1", "--b=2", "--a=3", "--c")
    assert [value_of(words, flag) for flag in ("--a", "--b", "--c", "--d")] == ["3", "2", "", None]
