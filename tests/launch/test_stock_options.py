"""No option of SGLang's about order, time-outs and limits is silently without effect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sglang.srt.environ
from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
from sglang.srt.arg_groups.fields.schedule import Schedule
from sglang.srt.server_args import ServerArgs

from sglang_cdsp import architectures
from sglang_cdsp.engine.model_check import BACKENDS, LATENT_BACKENDS
from sglang_cdsp.launch.stock_options import (
    ATTENTION_BACKENDS,
    OPTIONS,
    Effect,
    problems,
    table,
)

NAMES = [option.name for option in OPTIONS]
REFUSED = [option for option in OPTIONS if option.effect is Effect.REFUSED]
FLAGS = [option for option in REFUSED if option.name.startswith("--")]
VARIABLES = [option for option in REFUSED if not option.name.startswith("--")]
PAGE = Path(__file__).parents[2] / "docs" / "support.md"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in VARIABLES:
        monkeypatch.delenv(option.name, raising=False)


def server_args(**changed: Any) -> ServerArgs:
    return ServerArgs(model_path="m", **changed)


def environment() -> set[str]:
    """SGLang's variables that are about queues, batches, time-outs and limits."""
    source = Path(sglang.srt.environ.__file__).read_text(encoding="utf-8")
    names = re.findall(r"^    (SGLANG_\w+) = Env", source, re.MULTILINE)
    first, last = (
        names.index("SGLANG_INIT_NEW_TOKEN_RATIO"),
        names.index("SGLANG_REQ_RUNNING_TIMEOUT"),
    )
    assert 10 < last - first < 60
    disaggregation = {name for name in names if name.startswith("SGLANG_DISAGGREGATION_")}
    return {*names[first : last + 1], *disaggregation}


def test_no_option_is_twice() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_every_flag_of_sglangs_scheduling_is_in_the_table() -> None:
    flags = {f.name for f in msgspec.structs.fields(Schedule) if not f.name.startswith("_")}
    assert flags <= {option.field for option in OPTIONS}


def test_every_variable_of_sglangs_queue_and_disaggregation_is_in_the_table() -> None:
    assert environment() <= set(NAMES)


# Flags of the table that SGLang 0.5.21 does not have yet.
NEWER = {"--prefill-decode-interval-min-bs"}


def test_the_table_names_nothing_that_sglang_does_not_have() -> None:
    fields = {f.name for f in msgspec.structs.fields(ServerArgs)}
    source = Path(sglang.srt.environ.__file__).read_text(encoding="utf-8")
    for option in OPTIONS:
        if option.name.startswith("--"):
            assert option.field in fields or option.name in NEWER
        else:
            assert f"    {option.name} = Env" in source


def test_sglangs_defaults_pass() -> None:
    assert problems(server_args()) == []


def value_for(field: str) -> Any:
    """A value that asks for something, of the field's type."""
    default = next(f.default for f in msgspec.structs.fields(ServerArgs) if f.name == field)
    if isinstance(default, bool):
        return True
    if isinstance(default, int):
        return default + 7
    return {"schedule_policy": "lpm", "min_free_slots_delay": 2}.get(field, "something")


@pytest.mark.parametrize("option", FLAGS, ids=lambda option: option.name)
def test_a_refused_flag_is_named_with_its_remedy(option: Any) -> None:
    [line] = problems(server_args(**{option.field: value_for(option.field)}))
    assert line.startswith(f"{option.name} has no place in a pool: ")
    assert re.search(r"remove|set it to|name one of", line)
    assert "\n" not in line


@pytest.mark.parametrize("option", VARIABLES, ids=lambda option: option.name)
@pytest.mark.parametrize("value", ["1", "true"])
def test_a_refused_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, option: Any, value: str
) -> None:
    monkeypatch.setenv(option.name, value)
    [line] = problems(server_args())
    assert option.name in line
    assert line.endswith("unset")
    for off in ("", "0", "-1", "false"):
        monkeypatch.setenv(option.name, off)
        assert problems(server_args()) == []


def test_all_of_them_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in VARIABLES:
        monkeypatch.setenv(option.name, "1")
    changed = {option.field: value_for(option.field) for option in FLAGS}
    assert len(problems(server_args(**changed))) == len(REFUSED)


@pytest.mark.parametrize("backend", ATTENTION_BACKEND_CHOICES)
@pytest.mark.parametrize("flag", ["attention_backend", "prefill_attention_backend"])
def test_backends_that_were_tried_pass_and_no_others(backend: str, flag: str) -> None:
    lines = problems(server_args(**{flag: backend}))
    assert bool(lines) is (backend not in ATTENTION_BACKENDS)


def test_the_backends_are_those_of_the_engine() -> None:
    tried = (*BACKENDS.values(), *LATENT_BACKENDS.values())
    engine = {name for names in tried for name in names.split(" or ")}
    assert engine == set(ATTENTION_BACKENDS)


def test_the_page_is_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page
    assert architectures.table() in page
    for backend in ATTENTION_BACKENDS:
        assert f"`{backend}`" in page
