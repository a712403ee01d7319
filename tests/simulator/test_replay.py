"""Replay: what a plan log says, and the same run once more."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.plan_log import read_plan_log
from sglang_cdsp.simulator.replay import (
    Comparison,
    chunk_errors,
    fitted_speed,
    replay,
)
from sglang_cdsp.simulator.types import Request
from tests.simulator.plan_logs import line, lines_of, write
from tests.simulator.small_worlds import LINEAR, world


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


def test_what_passed_passes_again(tmp_path: Path) -> None:
    """A short prompt runs between the layers of a long one, as the server's log says it did.

    Red when it waits for the long one's end, or the long one's chunk counts as slow.
    """
    setup = world(policy="cdsp-late", instances=1, layers=4, preempt_budget=0.2)
    rows = [Request("long", 0.0, 4000, 1), Request("short", 0.5, 100, 1)]
    ran = simulate(setup, rows).records
    assert [record.passed for record in ran] == [False, True]
    recorded = read_plan_log(write(tmp_path / "log", lines_of(ran)))
    for plans in (True, False):
        assert np.abs(replay(recorded, setup, plans=plans).errors).max() < 1e-6
    assert chunk_errors(recorded, LINEAR) == pytest.approx(0.0, abs=1e-6)


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
