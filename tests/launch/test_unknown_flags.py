"""Flags of ours that there are not, on the parser of a server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pytest

from sglang_cdsp.args import UNKNOWN_FLAGS, add_cli_args, from_namespace
from sglang_cdsp.launch.unknown_flags import keep_unknown_flags


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    add_cli_args(parser)
    keep_unknown_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--cdsp-polcy", "fixed-sp:2"], "no flag --cdsp-polcy: did you mean --cdsp-policy?"),
        (["--cdsp-polcy=fixed-sp:2"], "no flag --cdsp-polcy: did you mean --cdsp-policy?"),
        (["--cdsp-allow-plans"], "no flag --cdsp-allow-plans: did you mean"),
        (["--cdsp-zzzzzzzzzz", "1"], "no flag --cdsp-zzzzzzzzzz: --help lists the flags"),
    ],
)
@pytest.mark.parametrize("switch", [["--cdsp"], []], ids=["on", "off"])
def test_a_misspelt_flag_is_one_line(words: list[str], complaint: str, switch: list[str]) -> None:
    namespace = parse(["--model-path", "m", *words, *switch])
    assert namespace.model_path == "m"
    _, [problem] = from_namespace(namespace)
    assert complaint in problem


def test_all_of_them_are_told_with_the_bad_values() -> None:
    words = ["--cdsp", "--cdsp-a", "--cdsp-b", "1", "--cdsp-min-chunk", "0"]
    _, problems = from_namespace(parse(words))
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--speed", "1"], "--speed 1"),
        (["--cdsp-a", "1", "stray"], "stray"),
        (["stray"], "stray"),
        (["--cdsp-a=1", "stray"], "stray"),
    ],
)
def test_what_is_not_ours_is_left_to_the_parser(
    words: list[str], left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(words)
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {left}\n")


def test_a_good_command_line_has_none() -> None:
    assert getattr(parse(["--cdsp", "--cdsp-policy", "cdsp"]), UNKNOWN_FLAGS) == []
