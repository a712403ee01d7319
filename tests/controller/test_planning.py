"""A server's planner from its options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.controller.planning import Planning, make_planning
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.forced import ForcedPlan
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from tests.controller.fake_pool import FakePool

MODEL = LatencyModel(((1, Coefficients(1.0, 0.01, 0.0, 0.0)), (2, Coefficients(2, 0.005, 0, 0))))


def planning(**options: object) -> Planning:
    args = CdspArgs(policy="data-parallel", **options)  # type: ignore[arg-type]
    return make_planning(args, MODEL, (1, 2), 16)


def test_one_improvement_rate_for_every_load() -> None:
    snapshot = planning(improvement_rate=0.25).snapshot(0.0)
    assert snapshot["policy"] == "data-parallel"
    assert snapshot["waiting"] == 0
    assert snapshot["latency_model"]["sp"]["1"]["a"] == 1.0
    assert snapshot["regulation"]["improvement_rate"] == 0.25
    assert json.loads(json.dumps(snapshot)) == snapshot, "status pages are JSON"


@pytest.mark.parametrize("wrapped", [True, False])
def test_improvement_rates_from_a_file(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "rates.json"
    table = {"0.5": 0.0, "4": 0.3}
    path.write_text(json.dumps({"improvement_rate_mapping": table} if wrapped else table))
    regulation = planning(improvement_rates=str(path)).snapshot(0.0)["regulation"]
    assert regulation["improvement_rate_mapping"] == {"0.5": 0.0, "4.0": 0.3}


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"--cdsp-improvement-rates .*rates\.json: not JSON"):
        planning(improvement_rates=str(path))


def test_unknown_policies_and_sizes_are_refused() -> None:
    with pytest.raises(PlannerError, match="choose one of"):
        make_planning(CdspArgs(policy="fastest"), MODEL, (1, 2), 16)
    with pytest.raises(PlannerError, match="SP size 4 lies outside"):
        make_planning(CdspArgs(), MODEL, (1, 2, 4), 16)


def test_it_learns_from_profiled_sizes_only() -> None:
    made = planning()
    before = made.model.predict(2, 0, 100)
    for _ in range(50):
        made.observe(2, 0, 100, 2 * before)
        made.observe(8, 0, 100, 1000.0)
    assert made.model.predict(2, 0, 100) > 1.5 * before
    shown = made.correction.snapshot()["sp"]
    assert shown["2"]["samples"] == 50, "8 was not profiled, and teaches nothing"
    assert shown["1"]["samples"] == 0
    assert made.correction.snapshot()["ignored"] == 0


def test_one_warning_about_prompts_far_beyond_what_was_measured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured = replace(MODEL, fit={"max_tokens": 1000})
    made = make_planning(CdspArgs(policy="data-parallel"), measured, (1, 2), 16)
    for tokens in (900, 2000, 2001, 128_000):
        made.watch(tokens)
    (record,) = caplog.records
    assert "a prompt of 2001 tokens" in record.getMessage()
    assert "measured up to 1000" in record.getMessage()


def test_the_pool_watches_the_prompts_that_it_plans(caplog: pytest.LogCaptureFixture) -> None:
    measured = replace(MODEL, fit={"max_tokens": 50})
    made = make_planning(CdspArgs(policy="data-parallel"), measured, (1, 2), 1)
    pool = FakePool(size=2)
    queue = WaitingQueue(made, pool.ledger, lambda: 0.0)
    forced = pool.request(1000)
    forced.forced = ForcedPlan(((1000, (0,)),))
    queue.add(forced)
    assert not caplog.records  # its plan came with it: no time was looked up to choose it
    queue.add(pool.request(1000))
    queue.add(pool.request(2000))
    assert ["a prompt of 1000 tokens" in r.getMessage() for r in caplog.records] == [True]
