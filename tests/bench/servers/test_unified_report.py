"""The tables of the one-server comparison."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bench.servers.unified_report import ALL, FIGURES, ratio, report, throughput


def line(side: str, rate: float, turn: int, times: list[float], **changes: Any) -> dict[str, Any]:
    """Requests of 100 and 5000 tokens in turn; a first token after ``times``, two more by 1 s."""
    n = len(times)
    return {
        "side": side,
        "rate": rate,
        "turn": turn,
        "duration_s": 2.0,
        "tokens": [(100, 5000)[i % 2] for i in range(n)],
        "ttft_s": times,
        "tpot_s": [0.5] * n,
        "end_s": [time + 1.0 for time in times],
        "errors": [""] * n,
        **changes,
    }


LINES = [
    line("pool", 1.0, 0, [0.1, 2.0]),
    line("single", 1.0, 0, [0.4, 4.0]),
    line("pool", 1.0, 1, [0.3, 2.0]),
    line("single", 1.0, 1, [0.4, 1.0]),
    line("pool", math.inf, 0, [1.0] * 4),
    line("single", math.inf, 0, [1.0] * 5, errors=["", "", "", "", "gone"]),
]


def test_ratios_are_of_all_turns_with_the_spread_of_the_single_ones() -> None:
    found = ratio(LINES, 1.0, "ttft_s", "short", FIGURES[0][1])
    assert found is not None
    assert (found.pool, found.stock) == pytest.approx((0.2, 0.4))
    assert found.by_turn == pytest.approx((0.25, 0.75))
    long = ratio(LINES, 1.0, "ttft_s", "long", FIGURES[0][1])
    assert long is not None
    assert long.by_turn == pytest.approx((0.5, 2.0))
    both = ratio(LINES, 1.0, "end_s", ALL, FIGURES[0][1])
    assert both is not None
    assert (both.pool, both.stock) == pytest.approx((2.1, 2.45))


def test_throughput_counts_who_was_answered() -> None:
    found = throughput(LINES)
    assert found is not None
    assert (found.pool, found.stock) == (2.0, 2.0)


def test_a_side_without_such_requests_has_no_ratio() -> None:
    assert ratio(LINES[:1], 1.0, "ttft_s", "short", FIGURES[0][1]) is None
    assert throughput(LINES[:4]) is None


def test_lines_from_a_file_make_the_same_table() -> None:
    table = report(LINES)
    assert report(json.loads(json.dumps(LINES))) == table
    assert "Failed: pool 0, single 1." in table
    assert "P99 TTFT of short prompts at 1/s" in table
    assert "all at once" in table
