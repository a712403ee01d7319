"""What people see."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Machine
from sglang_cdsp.serve.layout import Layout, prefill_and_decode
from sglang_cdsp.serve.screen import curl_line, progress_table, rows, show_ready

STATUS: dict[str, Any] = {
    "policy": "cdsp-late",
    "latency_model_source": "measured 2026-11-26 22:51, kept in /home/somebody/.cache/m.json",
    "regulation": {"sp_size_candidates": [1, 2]},
    "pool": {"instances": 2, "capacity_tokens": [20_000, 19_968]},
}


def layout(*flags: str) -> Layout:
    return prefill_and_decode(Asked(Path("m"), 2, port=29_123, flags=flags), Machine((), 1))


def shown(width: int, *flags: str) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    show_ready(console, layout(*flags), STATUS, Path("/var/log/[x]"), 61.4, 1)
    return out.getvalue()


def test_the_panel_says_what_runs_and_where() -> None:
    found = shown(120, "--enable-metrics")
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


def test_metrics_are_shown_where_they_are_on() -> None:
    assert "metrics" not in shown(120)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_curl_line_can_be_copied_whole(width: int) -> None:
    lines = shown(width).splitlines()
    assert sum(STATUS["latency_model_source"] in line for line in lines) == 1
    [line] = [line for line in lines if "curl " in line]
    words = shlex.split(line.partition("try")[2])
    assert words == shlex.split(curl_line(layout()))
    assert words[:2] == ["curl", "http://127.0.0.1:29123/v1/completions"]


def test_a_pool_that_asks_for_a_key_leaves_its_rows_out() -> None:
    names = [name for name, _ in rows(layout(), {}, Path("logs"), 1)]
    assert "policy" not in names
    assert {"server", "status", "logs"} <= set(names)


def test_ranks_are_told_where_there_are_several() -> None:
    assert dict(rows(layout(), STATUS, Path("logs"), 4))["instances"].startswith("2 of 4 ranks")


def test_the_progress_has_a_row_a_part() -> None:
    out = io.StringIO()
    stages = {"prefill": "measuring the pool", "router": "ready"}
    Console(file=out, width=100).print(progress_table(layout(), stages, 12.3))
    router, prefill, decode, elapsed = out.getvalue().splitlines()
    assert "ready" in router
    assert "measuring the pool" in prefill
    assert "starting" in decode
    assert "12 s" in elapsed
