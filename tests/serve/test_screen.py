"""What people see."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sglang_cdsp.form import Form
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Machine
from sglang_cdsp.serve.layout import Layout, layout_of
from sglang_cdsp.serve.screen import Seen, curl_line, progress_table, rows, show_ready

STATUS: dict[str, Any] = {
    "policy": "cdsp-late",
    "latency_model_source": "measured 2026-11-26 22:51, kept in /home/somebody/.cache/m.json",
    "regulation": {"sp_size_candidates": [1, 2]},
    "pool": {"instances": 2, "capacity_tokens": [20_000, 19_968]},
}


def layout(*flags: str, form: Form = Form.ONE_SERVER) -> Layout:
    return layout_of(Asked(Path("m"), 2, port=29_123, flags=flags, form=form), Machine((), 1))


def shown(width: int, of: Layout, page: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    show_ready(console, of, Seen(STATUS, page), Path("/var/log/[x]"), 61.4, 1)
    return out.getvalue()


def test_the_panel_says_what_runs_and_where() -> None:
    found = shown(120, layout("--enable-metrics", form=Form.PREFILL))
    for text in (
        "ready after 61 s",
        "cdsp-late, SP sizes 1, 2",
        "2, 19968 KV tokens each",
        "measured 2026-11-26 22:51, kept in",
        "http://127.0.0.1:29123 ",
        "/cdsp/status",
        "/metrics  (prefill)",
        "/metrics  (decode)",
        "/var/log/[x]",
        "Ctrl-C",
    ):
        assert text in found


def test_what_is_not_there_is_not_shown() -> None:
    assert "/metrics" not in shown(120, layout())
    assert "--enable-metrics" in shown(120, layout())
    assert "http://127.0.0.1:29123/metrics" in shown(120, layout("--enable-metrics"))
    assert "29123/cdsp " not in shown(120, layout())
    assert "http://127.0.0.1:29123/cdsp " in shown(120, layout(), page=True)


@pytest.mark.parametrize("form", Form)
def test_roles_are_those_of_one_server(form: Form) -> None:
    seen = Seen({**STATUS, "roles": "3p1d"})
    names = dict(rows(layout(form=form), seen, Path("logs"), 1))
    assert names.get("roles", "").startswith("3p1d") == (form is Form.ONE_SERVER)


def test_the_curl_line_has_a_key_where_one_is_asked_for() -> None:
    line = curl_line(layout("--api-key", "the secret"))
    assert 'Bearer $API_KEY"' in line
    assert "the secret" not in line
    assert json.loads(shlex.split(line)[-1])["prompt"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_curl_line_can_be_copied_whole(width: int) -> None:
    lines = shown(width, layout()).splitlines()
    assert sum(STATUS["latency_model_source"] in line for line in lines) == 1
    [line] = [line for line in lines if "curl " in line]
    words = shlex.split(line.partition("try")[2])
    assert words == shlex.split(curl_line(layout()))
    assert words[:2] == ["curl", "http://127.0.0.1:29123/v1/completions"]


def test_a_pool_that_asks_for_a_key_leaves_its_rows_out() -> None:
    names = [name for name, _ in rows(layout(), Seen(), Path("logs"), 1)]
    assert "policy" not in names
    assert {"server", "status", "logs"} <= set(names)


def test_ranks_are_told_where_there_are_several() -> None:
    found = dict(rows(layout(), Seen(STATUS), Path("logs"), 4))
    assert found["instances"].startswith("2 of 4 ranks")


def test_the_progress_has_a_row_a_part() -> None:
    out = io.StringIO()
    stages = {"prefill": "measuring the pool", "router": "ready"}
    table = progress_table(layout(form=Form.PREFILL), stages, 12.3)
    Console(file=out, width=100).print(table)
    router, prefill, decode, elapsed = out.getvalue().splitlines()
    assert "ready" in router
    assert "measuring the pool" in prefill
    assert "starting" in decode
    assert "12 s" in elapsed
