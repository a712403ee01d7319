"""What the footprint program reads of processes and plan logs, and how it tells it."""

from __future__ import annotations

import json

import pytest

from bench.servers.footprint import Moved, Process, Start, kind_of, moves_of, tables


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("sglang::scheduler_DP1", "scheduler"),
        ("sglang::data_parallel_controller", "controller"),
        ("sglang::detokenizer", "detokenizer"),
        ("python -m sglang.launch_server --cdsp", "HTTP and helpers"),
    ],
)
def test_a_process_is_known_by_its_title(title: str, kind: str) -> None:
    assert kind_of(title) == kind


def test_moves_are_read_from_the_plan_log() -> None:
    move = {"from": 0, "to": 1, "tokens": 510, "asked_s": 1.0, "left_s": 1.5, "arrived_s": 1.75}
    log = [
        {"kind": "roles", "roles": "1p1d"},
        {"rid": "move-0", "moves": [move, {**move, "tokens": 520}]},
        {"rid": "other", "moves": [move]},
        {"rid": "move-1", "moves": []},
    ]
    found = moves_of(map(json.dumps, log), {"move-0": 8, "move-1": 8})
    assert found == [Moved(8, 510, 0.25, 0.5), Moved(8, 520, 0.25, 0.5)]


def test_tables_have_sums_and_longest_pauses() -> None:
    start = Start("stock", 12.3, (Process("scheduler", 100.0), Process("controller", 50.0)))
    moved = [Moved(1, 600, 0.010, 0.1), Moved(1, 900, 0.030, 0.1), Moved(8, 2100, 0.5, 0.2)]
    lines = tables([start], moved).splitlines()
    assert "| stock | 12.3 s | 150 MiB | scheduler 100, controller 50 |" in lines
    assert "| 1 | 500 to 900 | 2 | 20 ms | 30 ms | 100 ms |" in lines
    assert "| 8 | 2000 to 2100 | 1 | 500 ms | 500 ms | 200 ms |" in lines
