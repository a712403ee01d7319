"""The comparison with the paper: parts of traces, and what is read off the curves."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bench.paper import run
from bench.paper.cases import PART_S, Case, Load, Outcome, run_case
from bench.paper.curves import Study, critical_rate, crossing, p50, ratio
from bench.paper.report import paper_report, trace_report
from sglang_cdsp.simulator.metrics import Spread, Summary
from sglang_cdsp.simulator.sweep import is_regulated

FLAT = Spread(1.0, 1.0, 1.0, 1.0)
LIGHT = Summary(FLAT, FLAT, 1.0, 10, 0, 0.5, 0.0, {1: 10})


def outcome(ttft_s: float) -> Outcome:
    summary = replace(LIGHT, ttft_s=Spread(ttft_s, ttft_s, ttft_s, ttft_s))
    return Outcome(summary, np.full(10, ttft_s, np.float32))


def study() -> Study:
    """TTFT is 1, 10, 100 s at 1, 2, 3 req/s; for `cdsp` half of it at r = 0.5."""
    load = Load("short", (1.0, 2.0, 3.0))
    baselines = ("fixed-sp:16", "fixed-sp:8", "loongserve", "loongserve-unified")
    ours = ("single-chunk", "cdsp-paper", "cdsp")
    names = baselines + ours
    outcomes = {}
    for name, rate, r, seed in product(names, (*load.rates, 1.65), (0.0, 0.1, 0.5), (0, 1, 9)):
        ttft_s = 10 ** (rate - 1) * (0.5 if (name, r) == ("cdsp", 0.5) else 1.0)
        if is_regulated(name) == (r > 0):
            outcomes[Case(load, rate, name, r, seed)] = outcome(ttft_s)
    made = Study(load, names, outcomes, (0, 1, 2), 9, (LIGHT,) * 3)
    for name, seed in product(ours, (0, 1)):
        case = Case(load, 1.65, name, 0.0, seed, made.table(name))
        outcomes[case] = outcome(77.0)
    # A critical rate may be one of the sweep, with more seeds than the others.
    outcomes |= {replace(c, seed=2): o for c, o in outcomes.items() if c.rate == 2 and c.seed == 1}
    return replace(made, critical={"fixed-sp:8": 1.65, "loongserve": 1.65})


def test_crossing_is_linear_in_the_logarithm() -> None:
    factors = np.array([1.0, 10.0, 1000.0])
    assert crossing((1.0, 2.0, 4.0), factors, 10**0.5) == pytest.approx(1.5)
    assert crossing((1.0, 2.0, 4.0), factors, 100.0) == pytest.approx(3.0)
    assert crossing((1.0, 2.0, 4.0), factors, 1e4) == np.inf
    assert crossing((1.0, 2.0, 4.0), factors, 0.1) == -np.inf


def test_curves_choose_rates_and_loads() -> None:
    made = study()
    assert made.best("cdsp", 2.0).improvement_rate == 0.5
    assert made.best("cdsp-paper", 2.0).improvement_rate == 0.1  # all equal: the lowest
    assert made.best("fixed-sp:8", 2.0).improvement_rate == 0.0
    assert made.table("cdsp") == (("1", 0.5), ("2", 0.5), ("3", 0.5))
    assert made.max_load("fixed-sp:8") == pytest.approx(1 + np.log10(25))
    assert made.max_load("cdsp") == pytest.approx(1 + np.log10(50))
    assert critical_rate(made, "fixed-sp:8") == 1.65  # 1 + log10(5) = 1.699, down to 0.05
    pair = made.best("fixed-sp:8", 2.0), made.best("cdsp", 2.0)
    assert ratio(*pair, p50) == pytest.approx((2.0, 2.0, 2.0))


def test_the_report_of_traces_names_every_policy_and_speed() -> None:
    text = trace_report([study()])
    twice = "2.00 (2.00 to 2.00), 2.00 (2.00 to 2.00) |"
    assert f"| 2 | `fixed-sp:8` | 1.00 (1.00 to 1.00), 1.00 (1.00 to 1.00) | {twice}" in text
    assert text.count("\n| 3 | ") == 5  # the sweep, and four rivals


def test_the_papers_report_holds_every_section() -> None:
    text = paper_report([study()], 10)
    assert "| P50 TTFT, `fixed-sp:8` over ours | 1.64 to 2.78 | 1.00 | 2.00 |" in text
    assert "### Short, 1.65 req/s, critical rate of `fixed-sp:8` and `loongserve`" in text
    assert "| `cdsp` | 0.5 | 2.23 (2.23 to 2.23)" in text
    assert text.count("| with the regulator |  | 77.00 (77.00 to 77.00)") == 3
    assert "| short | 3 | `cdsp` | 100.00 | **50.00** |" in text
    assert "| `cdsp` | 2.70 (2.70 to 2.70) (+13%) |" in text


def test_a_trace_is_cut_into_parts_and_mixed(tmp_path: Path) -> None:
    header = "timestamp_s,input_tokens,output_tokens\n"
    long, short = tmp_path / "long", tmp_path / "short"
    times = (0, 1, PART_S + 2, PART_S + 4, 3 * PART_S)
    long.write_text(header + "".join(f"{t},9000,5\n" for t in times))
    short.write_text(header + "0,70,3\n3,80,3\n")
    load = Load("mix", (1.0,), trace=long, background=short)
    mixed = load.at(2.0, 1)
    assert [(r.arrival_s, r.prompt_tokens) for r in mixed] == [
        (0.0, 70),
        (1.0, 9000),
        (1.5, 80),
        (2.0, 9000),
    ]
    _, result = run_case(Case(load, 2.0, "fixed-sp:8", 0.0, 1))
    assert result.summary.completed == 4
    assert result.summary.sp_histogram == {8: 4}
    assert len(result.ttfts) == 4


@pytest.mark.parametrize("ttft_s", [1.0, 1e4])
def test_a_sweep_that_does_not_tell_gives_no_nan_and_says_so(ttft_s: float) -> None:
    """Runs too short for any queue, and rates that are all beyond saturation."""
    made = study()
    flat = {case: outcome(ttft_s) for case in made.outcomes}
    blind = replace(made, outcomes=flat)
    critical = {name: critical_rate(blind, name) for name in ("fixed-sp:8", "loongserve")}
    assert set(critical.values()) == {3.0 if ttft_s < 5 else 1.0}
    for name, seed in product(("single-chunk", "cdsp-paper", "cdsp"), (0, 1)):
        case = Case(made.load, critical["loongserve"], name, 0.0, seed, blind.table(name))
        flat[case] = outcome(ttft_s)
    text = paper_report([replace(blind, outcomes=flat, critical=critical)], 10)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert "1.20 to 1.45 | - | - |" in text
    assert "more `--requests`" in text
    assert "or beyond it: the sweep does not tell" in text
    assert "more `--requests`" not in paper_report([made], 10)


def test_requests_of_one_token_have_no_time_between_tokens() -> None:
    none = Spread.of(np.array([]))
    made = study()
    silent = {
        case: Outcome(replace(o.summary, tbt_s=none), o.ttfts) for case, o in made.outcomes.items()
    }
    text = paper_report([replace(made, outcomes=silent)], 10)
    assert not re.search(r"\b(nan|inf)\b", text)


def test_what_is_committed_is_not_replaced_by_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not run.RESULTS.is_relative_to(Path("build/paper").resolve())
    assert (run.RESULTS / "paper-8b.md").exists()
    broken, traces = tmp_path / "broken", tmp_path / "traces"
    broken.write_bytes(b"no pickle")
    traces.mkdir()
    (traces / run.TRACE).write_text("no trace\n")
    for flags, says in (
        (("--requests", "5", "--out", str(run.RESULTS)), "holds what is committed"),
        (("--requests", "0"), "not from 1"),
        (("--only", "traces"), "needs --traces DIR"),
        (("--traces", str(tmp_path / "none")), "No such file"),
        (("--traces", str(traces)), "no known trace format"),
        (("--forget", "cdsp"), "give both"),
        (("--forget", "best", "--cache", str(tmp_path / "c")), "not one of"),
        (("--cache", str(broken)), "not the runs of an earlier call"),
        (("--cache", str(tmp_path)), "Is a directory"),
        (("--out", str(broken)), "--out"),
        (("--processes", "0"), "not from 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(flags if "--out" in flags else (*flags, "--out", str(tmp_path / "out")))
        err = capsys.readouterr().err
        assert stop.value.code == 2, flags
        assert says in err
        assert err.count("\n") == 1
