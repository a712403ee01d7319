"""SGLang's options where one server prefills and decodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang.srt.server_args import ServerArgs

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.launch.command_line import problems_of
from sglang_cdsp.launch.one_server_options import DIFFERENCES, ONE_SERVER_OPTIONS
from sglang_cdsp.launch.stock_options import OPTIONS, Effect, problems, table

PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def test_every_option_is_judged_once_in_both_forms() -> None:
    names = [option.name for option in ONE_SERVER_OPTIONS]
    assert names == [option.name for option in OPTIONS]
    assert {option.name for option in DIFFERENCES} <= set(names)


def test_a_difference_is_one() -> None:
    stock = {option.name: option for option in OPTIONS}
    for option in DIFFERENCES:
        before = stock[option.name]
        assert (option.effect, option.why) != (before.effect, before.why)


def test_nothing_about_decode_is_without_effect_where_the_server_decodes() -> None:
    assert not [o for o in ONE_SERVER_OPTIONS if "does not decode" in o.why]


def test_a_time_limit_of_running_requests_is_refused_by_a_prefill_server_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_REQ_RUNNING_TIMEOUT", "5")
    args = ServerArgs(model_path="m")
    assert problems(args, ONE_SERVER_OPTIONS) == []
    assert len(problems(args)) == 1


def test_the_command_line_of_one_server_passes() -> None:
    args = ServerArgs(model_path="m", dp_size=2, port=0)
    args.disaggregation_transfer_backend = "mori"
    assert problems_of(CdspArgs(), args) == []


@pytest.mark.parametrize(
    ("mode", "cdsp", "flag"),
    [
        ("null", CdspArgs(decode_max_total_tokens=9000), "--cdsp-decode-max-total-tokens"),
        ("prefill", CdspArgs(decode_share=0.4), "--cdsp-decode-share"),
        ("prefill", CdspArgs(tpot_target=0.1), "--cdsp-tpot-target"),
        ("prefill", CdspArgs(roles="1p1d"), "--cdsp-roles"),
    ],
)
def test_a_flag_of_the_other_form_is_named(mode: str, cdsp: CdspArgs, flag: str) -> None:
    def lines(mode: str) -> list[str]:
        args = ServerArgs(model_path="m", dp_size=2, port=0, disaggregation_mode=mode)
        args.disaggregation_bootstrap_port = 0
        return problems_of(cdsp, args)

    [line] = lines(mode)
    assert line.startswith(flag)
    assert lines({"null": "prefill", "prefill": "null"}[mode]) == []


def test_refusals_are_alike_where_both_refuse() -> None:
    refused = {option.name for option in OPTIONS if option.effect is Effect.REFUSED}
    also = {option.name for option in ONE_SERVER_OPTIONS if option.effect is Effect.REFUSED}
    assert also <= refused


def test_the_page_has_the_differences() -> None:
    assert table(DIFFERENCES) in PAGE.read_text(encoding="utf-8")
