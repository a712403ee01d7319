"""Replay: what a plan log says, and the same run once more."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.__main__ import main
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.replay import (
    Comparison,
    PlanLogError,
    chunk_errors,
    fitted_speed,
    read_plan_log,
    replay,
)
from sglang_cdsp.simulator.types import Record, Request
from tests.simulator.small_worlds import LINEAR, world

STARTED_S = 5000.0
"""The server's clock when the run began."""


def line(
    rid: str,
    arrival_s: float,
    bound_s: float,
    ttft_s: float | None,
    *chunks: tuple[int, list[int], float, float],
) -> dict[str, Any]:
    """A line of the log; times after the arrival but for the arrival itself."""
    return {
        "rid": rid,
        "prompt_tokens": sum(chunk[0] for chunk in chunks),
        "policy": "cdsp-paper",
        "arrival_s": STARTED_S + arrival_s,
        "bound_s": bound_s,
        "ttft_s": {"predicted": 1.0, "measured": ttft_s},
        "chunks": [
            {"tokens": tokens, "instances": group, "start_s": start, "end_s": end}
            for tokens, group, start, end in chunks
        ],
        "outcome": "finished" if ttft_s is not None else "aborted",
        "error": "",
    }


def lines_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What a server would have logged of simulated requests, in the order of their ends."""
    found = []
    for record in records:
        request, at = record.request, record.request.arrival_s
        assert record.bound_s is not None
        assert record.ttft_s is not None
        chunks = [(c.tokens, [*c.instances], c.start_s - at, c.end_s - at) for c in record.chunks]
        found.append(line(request.rid, at, record.bound_s - at, record.ttft_s, *chunks))
    return sorted(found, key=lambda row: row["arrival_s"] + row["ttft_s"]["measured"])


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path


def test_the_log_is_read_by_arrival_from_the_first(tmp_path: Path) -> None:
    log = [
        line("late", 3.0, 0.25, 1.0, (1000, [0], 0.5, 1.0)),
        line("gone", 1.0, 0.0, None, (9, [0], 0.0, 0.1)),
        line("first", 2.0, 0.0, 2.5, (500, [1], 0.0, 0.5), (800, [1, 0], 0.5, 2.0)),
    ]
    first, late = read_plan_log(write(tmp_path / "log", log))
    assert first.request == Request("first", 0.0, 1300, 1)
    assert late.request == Request("late", 1.0, 1000, 1)
    assert (late.bound_s, late.ttft_s, late.chunk_s) == (1.25, 1.0, (0.5,))
    assert first.chunks == ((500, (1,)), (800, (1, 0)))


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"outcome": "aborted"}\n[]'])
def test_a_log_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(PlanLogError, match=str(path)):
        read_plan_log(path)
    with pytest.raises(PlanLogError, match="no-such"):
        read_plan_log(tmp_path / "no-such")


def test_errors_reckoned_by_hand(tmp_path: Path) -> None:
    """LINEAR: 1000 tokens take 1 s on one instance; b stands 0.5 s behind a."""
    log = [
        line("a", 0.0, 0.0, 1.25, (1000, [0], 0.0, 1.25)),
        line("b", 0.5, 0.0, 2.0, (2000, [0, 1], 1.0, 2.0)),
    ]
    recorded = read_plan_log(write(tmp_path / "log", log))
    setup = world(instances=2, instances_per_node=2)
    found = replay(recorded, setup, plans=True)
    assert found.simulated == pytest.approx([1.0, 1.5])
    assert found.errors == pytest.approx([-0.2, -0.25])
    assert found.percentile_error(50) == pytest.approx(1.25 / 1.625 - 1)
    said = found.to_dict()
    assert said["request_error"]["mean"] == pytest.approx(0.225)
    assert said["request_error"]["worst"] == pytest.approx(-0.25)
    assert chunk_errors(recorded, LINEAR) == pytest.approx([-0.2, 0.0])


def test_plans_keep_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    """The policy let the short one pass: it is bound first though it came second."""
    log = [
        line("running", 0.0, 0.0, 1.0, (1000, [0], 0.0, 1.0)),
        line("long", 0.1, 0.9, 3.4, (2000, [0], 1.5, 3.5)),
        line("short", 0.2, 0.7, 1.3, (500, [0], 0.8, 1.3)),
    ]
    found = replay(read_plan_log(write(tmp_path / "log", log)), world(), plans=True)
    assert found.simulated == pytest.approx([1.0, 3.4, 1.3])


def test_a_recorded_plan_waits_for_its_slots(tmp_path: Path) -> None:
    log = [
        line("a", 0.0, 0.0, 1.0, (1000, [0], 0.0, 1.0)),
        line("b", 0.5, 0.5, 1.5, (1000, [0], 0.5, 1.5)),
    ]
    recorded = read_plan_log(write(tmp_path / "log", log))
    assert replay(recorded, world(kv_tokens=1500), plans=True).simulated[1] == pytest.approx(1.5)


requests = st.dictionaries(st.integers(0, 3000), st.integers(1, 4000), min_size=1, max_size=12).map(
    lambda rows: [Request(f"r{ms}", ms / 1000, n, 1) for ms, n in sorted(rows.items())]
)
policies = st.sampled_from(["cdsp-paper", "cdsp", "loongserve", "fixed-sp:2", "threshold:1500"])


@settings(print_blob=True, deadline=None, max_examples=25)
@given(requests, policies)
def test_a_simulated_run_replays_without_error(rows: list[Request], policy: str) -> None:
    """Both ways: the recorded plans, and the same policy asked again."""
    setup = world(policy=policy, instances=4, min_chunk=256)
    log = lines_of(simulate(setup, rows).records)
    with tempfile.TemporaryDirectory() as scratch:
        recorded = read_plan_log(write(Path(scratch) / "log", log))
    for plans in (True, False):
        found = replay(recorded, setup, plans=plans)
        assert np.abs(found.errors).max() < 1e-6


def test_a_slower_pool_is_seen_as_slower(tmp_path: Path) -> None:
    setup = world(policy="cdsp-paper", instances=4)
    rows = [Request(f"r{i}", 0.4 * i, 1000 + 300 * i, 1) for i in range(8)]
    slower = replace(setup, true_model=LINEAR.with_factors(dict.fromkeys((1, 2, 4), 1.1)))
    recorded = read_plan_log(write(tmp_path / "log", lines_of(simulate(slower, rows).records)))
    assert replay(recorded, setup, plans=True).percentile_error(50) < -0.05
    assert chunk_errors(recorded, LINEAR) == pytest.approx(-1 / 11)
    as_it_was = replace(setup, true_model=fitted_speed(recorded, LINEAR))
    assert np.abs(replay(recorded, as_it_was, plans=True).errors).max() < 1e-6


def test_percentiles_are_the_benchmarks() -> None:
    real, simulated = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.3, 4.4])
    said = Comparison(real, simulated).to_dict()
    assert said["p50_ttft_error"] == pytest.approx(2.65 / 2.5 - 1)
    assert said["p99_ttft_s"] == pytest.approx(3.97)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log", [line("a", 0.0, 0.0, 0.8, (1000, [0, 1], 0.0, 0.8))])
    model, out = tmp_path / "model.json", tmp_path / "out"
    LINEAR.save(model)
    command = ["replay", str(log), "--latency-model", str(model)]
    assert main([*command, "--json", "--out", str(out), "--improvement-rate", "0"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["policy"] == "cdsp-paper"
    for way in ("recorded plans", "planned anew"):
        assert said["replays"][way]["request_error"]["mean"] == pytest.approx(0.375)
    assert said["chunk_error"]["worst"] == pytest.approx(0.375)
    assert json.loads(out.read_text())["recorded_plans_s"] == pytest.approx(0.5)
    assert main(command) == 0
    assert "recorded plans" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [("--instances", "1"), ("--kv-tokens", "0"), ("--policy", "nonsense")]
)
def test_wrong_flags_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    log = write(tmp_path / "log", [line("a", 0.0, 0.0, 0.8, (1000, [0, 1], 0.0, 0.8))])
    model = tmp_path / "model.json"
    LINEAR.save(model)
    assert main(["replay", str(log), "--latency-model", str(model), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
