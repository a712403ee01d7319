"""Which gaps lie beside a prompt, and what the table says of them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.servers.beside import Beside, Stream, beside, figures, table, ways


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (1.5, 2.5, [1.0, 1.0]),  # the gaps in which it begins and ends, too
        (1.0, 2.0, [1.0]),
        (1.2, 1.8, [1.0]),
        (2.5, 9.0, [1.0, 3.0]),
        (6.5, 9.0, []),
        (0.0, 0.5, []),
    ],
)
def test_gaps_beside_a_prompt(start_s: float, end_s: float, expected: list[float]) -> None:
    at_s = np.array([1.0, 2.0, 3.0, 6.0])
    assert beside(at_s, start_s, end_s).tolist() == expected


def test_a_prompt_and_its_running_requests() -> None:
    streams = [Stream(0, [0.0, 1.0, 2.0, 5.0]), Stream(1, [0.0, 0.5, 1.5, 2.5])]
    found = Beside.of(1.2, 1.8, streams)
    assert found.ttft_s == pytest.approx(0.6)
    assert found.gaps_s.tolist() == [1.0, 1.0, 1.0]
    assert found.tpots_s.tolist() == [1.0, 1.0]


def test_the_table_compares_with_the_smallest_gap_of_stock() -> None:
    def run(ttft: float, *gaps: float) -> list[dict[str, object]]:
        return [{"ttft_s": ttft, "gaps_s": list(gaps), "tpots_s": [sum(gaps) / len(gaps)]}]

    runs = {
        "share 0.2": run(5.0, 0.2, 0.2),
        "stock 256, mixed": run(10.0, 0.4, 0.4),
        "stock 512, mixed": run(8.0, 0.8, 0.8),
    }
    assert figures(runs["share 0.2"])["gap P99"] == pytest.approx(0.2)
    said = table(runs, ["share 0.2"])
    assert "Over stock 256, mixed" in said
    assert "gap P99 0.50, largest TPOT 0.50, TTFT 0.50" in said


def test_every_server_of_the_comparison() -> None:
    names = [way.name for way in ways((0.2,), (256, 512), only_mixed=False)]
    assert names == [
        "share 0.2",
        "stock 256, mixed",
        "stock 256",
        "stock 512, mixed",
        "stock 512",
    ]
    (mixed,) = ways((), (256,), only_mixed=True)
    assert not mixed.pool
    assert "--enable-mixed-chunk" in mixed.flags
