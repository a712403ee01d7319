"""The program around the steps: what is chosen, what is written, what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu import __main__ as program
from bench.gpu.record import Check
from bench.gpu.runner import Outcome
from bench.gpu.steps import STEPS, Step, StepsError, chosen


def test_steps_by_number() -> None:
    assert chosen("") == STEPS[:-1]
    assert chosen("8") == STEPS[-1:]
    assert [step.number for step in chosen("1,3")] == [1, 3]
    assert [step.number for step in chosen("4-6,2")] == [2, 4, 5, 6]
    for text in ("9", "0-2", "two", "3-"):
        with pytest.raises(StepsError, match="--steps"):
            chosen(text)


def test_the_default_set_is_limited_to_eight_minutes() -> None:
    assert sum(step.limit_s for step in chosen("")) <= 480
    assert [step.number for step in STEPS if step.may_skip] == [5]


@pytest.mark.parametrize(
    ("statuses", "status", "last"),
    [
        (("passed", "skipped"), 0, "1 passed, 0 failed, 1 skipped"),
        (("failed", "passed"), 1, "1 passed, 1 failed, 0 skipped"),
    ],
)
def test_one_failed_step_is_the_exit_status_and_not_the_end(
    statuses: tuple[str, ...],
    status: int,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = list(statuses)

    def run_step(step: Step, *_: object) -> Outcome:
        found = left.pop(0)
        figures = {"device": "a GPU", "driver": "1.2"}
        checks = [Check("device and versions", found == "passed", 0.1, figures, "wrong")]
        return Outcome(step, found, 1.0, checks, "because")

    monkeypatch.setattr(program, "run_step", run_step)
    monkeypatch.setattr(program, "described_here", lambda dry_run: {"device": "unknown"})
    out = tmp_path / "gpu.json"
    arguments = ["--dry-run", "--steps", "1,5", "--out", str(out)]
    assert program.main(arguments) == status
    assert not left
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == last
    assert any("at most 60 s" in line for line in printed)
    document = json.loads(out.read_text())
    known = {"device": "a GPU", "driver": "1.2"}
    assert document["machine"] == (known if "passed" in statuses else {"device": "unknown"})
    assert document["command"] == f"python -m bench.gpu {' '.join(arguments)}"
    assert [step["status"] for step in document["steps"]] == list(statuses)
    assert document["steps"][0]["checks"][0]["name"] == "device and versions"
    assert document["summary"] == last


def test_committed_results_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    kept = tmp_path / "gpu-h100.json"
    kept.write_text("{}")
    assert program.main(["--dry-run", "--steps", "1", "--out", str(kept)]) == 2
    assert "committed result" in capsys.readouterr().err
    assert kept.read_text() == "{}"
    assert program.main(["--steps", "9"]) == 2
    assert "the steps are 1 to 8" in capsys.readouterr().err
