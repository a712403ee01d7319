"""The ``--cdsp`` options: parsing, refusals, and their way to child processes."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sglang_cdsp.args import (
    ENV_VAR,
    TESTED_SGLANG_VERSIONS,
    CdspArgs,
    activate,
    active_args,
    add_cli_args,
    from_namespace,
    parse_sp_sizes,
    with_admin,
)
from sglang_cdsp.planner import POLICY_NAMES


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    return parser


def read(*flags: str) -> tuple[CdspArgs | None, list[str]]:
    return from_namespace(parser().parse_args(flags))


def parsed(*flags: str) -> CdspArgs | None:
    args, problems = read(*flags)
    assert problems == []
    return args


def given(*flags: str) -> CdspArgs:
    args = parsed("--cdsp", *flags)
    assert args is not None
    return args


def refusal(*flags: str) -> str:
    [problem] = read(*flags)[1]
    assert "\n" not in problem
    return problem


# -- reading --------------------------------------------------------------------------------


def test_without_the_flag_there_is_nothing() -> None:
    assert parsed() is None


def test_the_flag_alone_takes_every_default() -> None:
    assert given() == CdspArgs()


def test_every_option_is_read(tmp_path: Path) -> None:
    model, rates = tmp_path / "model.json", tmp_path / "rates.json"
    model.touch()
    rates.touch()
    assert given(
        *("--cdsp-policy", "loongserve", "--cdsp-sp-sizes", "4,1,2", "--cdsp-min-chunk", "64"),
        *("--cdsp-improvement-rate", "0.25", "--cdsp-latency-model", str(model)),
        *("--cdsp-improvement-rates", str(rates), "--cdsp-instances-per-node", "2"),
        *("--cdsp-plan-log", "plans.jsonl"),
        *("--cdsp-allow-request-plans", "--cdsp-any-sglang-version"),
        *("--cdsp-cache", "kept", "--cdsp-measure-anew"),
    ) == CdspArgs(
        policy="loongserve",
        sp_sizes=(1, 2, 4),
        min_chunk=64,
        improvement_rate=0.25,
        latency_model=str(model),
        improvement_rates=str(rates),
        instances_per_node=2,
        plan_log="plans.jsonl",
        allow_request_plans=True,
        any_sglang_version=True,
        cache="kept",
        measure_anew=True,
    )


def test_every_option_has_a_flag_and_a_line_of_help() -> None:
    """``admin`` is not the user's: the launching process chooses it."""
    text = parser().format_help()
    assert "CDSP:" in text
    for field in fields(CdspArgs):
        flag = "--cdsp-" + field.name.replace("_", "-")
        assert (flag in text) is not field.name.startswith("admin"), flag
    for action in parser()._actions:
        assert action.help, action.option_strings
    assert all(version in text for version in TESTED_SGLANG_VERSIONS)
    [policy] = [a for a in parser()._actions if "--cdsp-policy" in a.option_strings]
    assert all(name in str(policy.help) for name in POLICY_NAMES)


def test_a_namespace_of_another_parser_means_off() -> None:
    assert from_namespace(argparse.Namespace(model_path="x")) == (None, [])


@pytest.mark.parametrize(
    ("text", "sizes"), [("", ()), ("1", (1,)), (" 4, 1,4,,2 ", (1, 2, 4)), ("3,6", (3, 6))]
)
def test_sp_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_sp_sizes(text) == sizes


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1,two", "0,1", "-2", "1.5"])
def test_sp_sizes_that_are_none(text: str) -> None:
    assert "write for example 1,2,4" in refusal("--cdsp", f"--cdsp-sp-sizes={text}")


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--cdsp-improvement-rate", "1.0"], "is outside [0, 1); try 0.1"),
        (["--cdsp-improvement-rate", "-0.1"], "is outside [0, 1); try 0.1"),
        (["--cdsp-improvement-rate", "nan"], "is outside [0, 1); try 0.1"),
        (["--cdsp-policy", "fastest"], "unknown policy 'fastest'; choose one of cdsp, "),
        (["--cdsp-policy", "fixed-sp:0"], "give a positive integer after the colon"),
        (["--cdsp-improvement-rate", "a lot"], "'a lot' is not a number"),
        (["--cdsp-min-chunk", "0"], "must be at least 1; it is a number of tokens"),
        (["--cdsp-min-chunk", "1e3"], "'1e3' is not an integer"),
        (["--cdsp-instances-per-node", "0"], "must be at least 1"),
        (["--cdsp-decode-max-total-tokens", "-5"], "must be at least 1; leave it out"),
        (["--cdsp-tpot-target", "0"], "is no number of seconds above 0; try 0.1"),
        (["--cdsp-tpot-target", "nan"], "is no number of seconds above 0; try 0.1"),
        (["--cdsp-decode-share", "0.6"], "beyond it long prompts never end"),
        (["--cdsp-seat-timeout", "-1"], "is no number of seconds from 0 up; try 120"),
        (["--cdsp-seat-timeout", "nan"], "is no number of seconds from 0 up; try 120"),
        (["--cdsp-seat-timeout", "soon"], "'soon' is not a number"),
    ],
)
def test_values_that_no_server_could_use(flags: list[str], remedy: str) -> None:
    message = refusal("--cdsp", *flags)
    assert remedy in message
    assert flags[0] in message


def test_a_share_and_a_target_are_two_ways_to_say_one_thing() -> None:
    both = ("--cdsp-decode-share", "0.2", "--cdsp-tpot-target", "0.1")
    assert "give one" in refusal("--cdsp", *both)
    assert given(*both[:2]).decode_share == 0.2
    assert given(*both[2:]).tpot_target == 0.1
    assert given().tpot_target is None
    assert given().decode_share is None, "it follows from who runs and who waits"


def test_several_mistakes_are_told_together() -> None:
    wrong = {
        "--cdsp-policy": "fastest",
        "--cdsp-sp-sizes": "0",
        "--cdsp-min-chunk": "few",
        "--cdsp-improvement-rate": "1",
    }
    args, problems = read("--cdsp", *(word for pair in wrong.items() for word in pair))
    assert args == CdspArgs(), "wrong values are replaced, so that what depends on them is checked"
    assert len(problems) == len(wrong)
    for flag in wrong:
        assert any(flag in problem for problem in problems)


def test_options_without_the_flag_are_named() -> None:
    message = refusal("--cdsp-policy", "fixed-sp:2", "--cdsp-allow-request-plans")
    assert message.startswith("--cdsp-policy, --cdsp-allow-request-plans given without --cdsp")
    assert "add --cdsp or remove them" in message


# -- to child processes ---------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in force, before and after."""
    monkeypatch.setenv(ENV_VAR, "")


@pytest.mark.usefixtures("clean")
def test_options_travel_in_the_environment() -> None:
    assert active_args() is None
    args = CdspArgs(sp_sizes=(1, 3), plan_log="päth", improvement_rate=0.0)
    activate(args)
    assert active_args() == args


def test_every_field_survives_json() -> None:
    args = CdspArgs(
        *("p", (2, 4), 0.5, 7, 8, 0.3, 0.4, 0.2, "1p1d"),
        *(99, "m", 3, "log", True, True, 900, 60.0, "rates"),
        *("cache", True, True),
        admin="ipc://x",
        admin_key="key",
    )
    assert CdspArgs.from_json(args.to_json()) == args
    assert all(getattr(args, f.name) != getattr(CdspArgs(), f.name) for f in fields(CdspArgs))


def test_options_of_another_version_are_an_error() -> None:
    with pytest.raises(TypeError):
        CdspArgs.from_json('{"speed": 11}')


def test_each_server_has_a_admin_of_its_own() -> None:
    args = CdspArgs(policy="loongserve")
    first, second = with_admin(args), with_admin(args)
    assert replace(first, admin="", admin_key="") == args
    assert first.admin != second.admin
    assert first.admin_key != second.admin_key
    assert {first.admin[:7], second.admin[:7]} == {"ipc://@"}, "leaves no file behind"
