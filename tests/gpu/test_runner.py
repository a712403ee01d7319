"""A step's process: whatever happens to it, the check goes on and says what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu.runner import Outcome, run_step
from bench.gpu.steps import Step
from tests.gpu import fake_steps

LIMIT_S = 120.0


def outcome_of(
    way: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    limit_s: float = LIMIT_S,
    may_skip: bool = False,
) -> Outcome:
    monkeypatch.setenv(fake_steps.WAY, way)
    step = Step(9, "a test's", "tests.gpu.fake_steps", limit_s, limit_s, may_skip)
    lines: list[str] = []
    found = run_step(step, folder, True, lines.append)
    assert len(lines) == len(found.checks)
    return found


def test_a_failed_check_fails_the_step_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcome_of("fails", tmp_path, monkeypatch)
    assert found.status == "failed"
    assert [check.ok for check in found.checks] == [True, False, True]
    assert found.checks[0].figures == {"device": "cpu"}
    assert found.checks[1].error.endswith("CheckFailed: 3 is not 4")
    assert found.reason == "1 of 3 checks failed"


def test_skipping_is_for_the_steps_that_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcome_of("skips", tmp_path, monkeypatch, may_skip=True)
    assert (found.status, found.reason) == ("skipped", "there is only one of them")
    found = outcome_of("skips", tmp_path, monkeypatch)
    assert found.status == "failed"
    assert "may not be skipped: there is only one" in found.reason


@pytest.mark.parametrize(
    ("way", "reason", "output"),
    [
        ("dies", "ended with status -9", "ok"),
        ("raises", "ended with status 1", "RuntimeError: outside of a check"),
    ],
)
def test_a_crash_keeps_what_was_found(
    way: str, reason: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcome_of(way, tmp_path, monkeypatch)
    assert found.status == "failed"
    assert [check.name for check in found.checks] == ["first"]
    assert found.reason == reason
    assert output in found.output


@pytest.mark.slow
def test_a_step_over_its_limit_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcome_of("hangs", tmp_path, monkeypatch, limit_s=20)
    assert found.status == "failed"
    assert found.reason == "ended after its limit of 20 s"
    assert [check.name for check in found.checks] == ["first"]
    assert not fake_steps.alive(tmp_path / "child")


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome_of("passes", tmp_path, monkeypatch)
    assert (found.status, found.reason, found.output) == ("passed", "", "")
