"""The page of figures: which runs it makes, and what it writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.paper import page
from bench.paper.cases import Case, Load, Outcome
from bench.paper.curves import Study
from sglang_cdsp.simulator.metrics import Spread, Summary
from sglang_cdsp.simulator.sweep import is_regulated

FLAT = Spread(1.0, 1.0, 1.0, 1.0)
LIGHT = Summary(FLAT, FLAT, 1.0, 10, 0, 0.5, 0.0, {1: 10})


def made_up(
    sweeps: Sequence[tuple[Load, Sequence[float]]],
    policies: Sequence[str],
    improvement_rates: Sequence[float],
    seeds: Sequence[int],
    tuning: int,
    args: Any,
) -> list[Study]:
    """In the place of simulations: TTFT rises with the rate, and differs by policy."""
    studies = []
    for load, rates in sweeps:
        outcomes = {}
        for number, name in enumerate(policies, 1):
            rs = improvement_rates if is_regulated(name) else (0.0,)
            for rate in rates:
                ttft_s = number * 2.0 ** (rate - rates[0])
                summary = replace(LIGHT, ttft_s=Spread(ttft_s, ttft_s, ttft_s, 2 * ttft_s))
                outcome = Outcome(summary, np.full(10, ttft_s, np.float32))
                for r in rs:
                    for seed in (*seeds, tuning):
                        outcomes[Case(load, rate, name, r, seed)] = outcome
        lights = (LIGHT,) * len(seeds)
        studies.append(Study(load, tuple(policies), outcomes, tuple(seeds), tuning, lights))
    return studies


def test_the_page_shows_every_figure_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(page, "explore", made_up)
    monkeypatch.setattr(page, "read_trace", lambda path: ())
    assert page.main(["--out", str(tmp_path / "out"), "--traces", str(tmp_path)]) == 0
    text = (tmp_path / "out" / "figures.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(pictures) == 4
    assert all(f"]({name})" in text for name in pictures)
    assert "`python -m bench.paper.page --traces DIR --out bench/results`" in text
    for name in (*page.RATES, "Mooncake", "Mooncake and ServeGen"):
        assert f"## {name[0].upper()}{name[1:]}, P50 / P99 TTFT in seconds" in text
    assert "| 2 | 1 / 2 | 2 / 4 | 3 / 6 | 4 / 8 | 5 / 10 | 6 / 12 |" in text


def test_the_command_is_the_one_that_made_the_page() -> None:
    text = page._page([], [], [("a.png", "what it is")], 50)
    assert "`python -m bench.paper.page --requests 50 --out bench/results`" in text
    assert "![what it is](a.png)\n\nWhat it is." in text


def test_what_cannot_be_done_is_told_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--traces", str(tmp_path)], ["--out", "/proc/figures"]):
        with pytest.raises(SystemExit) as stop:
            page.main(flags)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
