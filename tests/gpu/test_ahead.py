"""Work done beside earlier steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu import ahead
from bench.gpu.ahead import WORKS, Ahead
from bench.gpu.steps import STEPS, Step


def test_every_work_is_known() -> None:
    assert {step.ahead for step in STEPS if step.ahead} == set(WORKS)


def test_the_checkpoint_is_there_when_its_step_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "WAIT_S", 600.0)  # it may have little of a core here
    (step,) = (step for step in STEPS if step.ahead == "checkpoint")
    with Ahead([step], tmp_path, dry_run=True) as works:
        works.ready_for(step)
        recipe = json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())
    assert recipe["dtype"] == "float32"


def test_work_that_takes_too_long_is_ended_and_the_step_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "WAIT_S", 0.01)
    step = Step(9, "", "", 1, 1, ahead="checkpoint", ahead_ends_first=True)
    with Ahead([step], tmp_path, dry_run=True) as works:
        works.ready_for(step)
        assert works._processes[9].returncode == -9
    assert not (tmp_path / "checkpoint" / "checkpoint.json").exists()
