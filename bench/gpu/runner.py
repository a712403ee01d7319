"""Runs steps, each in a process of its own that cannot outlive its limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.child import SKIPPED, skip_file
from bench.gpu.record import Check, line_of, read_checks
from bench.gpu.steps import ROOT, Step
from sglang_cdsp.stack import reaper

GRACE_S = 12.0
"""For a step that is over its limit, to end its servers, before it is killed."""
_TAIL_LINES = 150


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        step: which.
        status: "passed", "failed" or "skipped".
        seconds: wall time.
        checks: what it found, as far as it got.
        reason: why it was skipped, or what went wrong beside its checks.
        output: the last lines of its output, if it failed.
    """

    step: Step
    status: str
    seconds: float
    checks: list[Check] = field(default_factory=list)
    reason: str = ""
    output: str = ""


def run_step(step: Step, folder: Path, dry_run: bool, echo: Callable[[str], None]) -> Outcome:
    """Run ``step``; whatever happens to it, an outcome is returned.

    Args:
        step: what to run.
        folder: for its result and its output.
        dry_run: on the CPU with small shapes.
        echo: receives the lines of its checks.
    """
    started = time.monotonic()
    result, log = folder / f"step{step.number}.jsonl", folder / f"step{step.number}.log"
    for path in (result, skip_file(result), log):
        path.unlink(missing_ok=True)
    limit_s = step.dry_limit_s if dry_run else step.limit_s
    command = [sys.executable, "-m", "bench.gpu.child", step.module, str(result.resolve())]
    try:
        status = _run(command + ["--dry-run"] * dry_run, log, limit_s)
    except Exception as error:  # the steps after this one still run
        status, words = 1, f"cannot be run: {error!r}"
    else:
        words = f"ended after its limit of {limit_s:g} s" if status is None else ""
    checks = read_checks(result)
    for check in checks:
        echo(line_of(check))
    return _outcome(step, status, words, checks, result, log, time.monotonic() - started)


def _outcome(
    step: Step,
    status: int | None,
    words: str,
    checks: list[Check],
    result: Path,
    log: Path,
    seconds: float,
) -> Outcome:
    wrong = [check for check in checks if not check.ok]
    skip = skip_file(result)
    if status == SKIPPED and step.may_skip and not wrong and skip.exists():
        return Outcome(step, "skipped", seconds, checks, skip.read_text().strip())
    if status == 0 and checks and not wrong:
        return Outcome(step, "passed", seconds, checks)
    if not words and status == SKIPPED and skip.exists():
        words = f"may not be skipped: {skip.read_text().strip()}"
    if not words and wrong:
        words = f"{len(wrong)} of {len(checks)} checks failed"
    if not words:
        words = f"ended with status {status}" + ("" if checks else " and without any check")
    return Outcome(step, "failed", seconds, checks, words, _tail(log))


def _run(command: list[str], log: Path, limit_s: float) -> int | None:
    """Run a command in a session of its own; its status, None if it was over its limit."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, _put_off(signal.SIGTERM) as came:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            start_new_session=True,
        )
    try:
        if came:
            raise SystemExit(128 + signal.SIGTERM)
        return process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
        return None
    finally:
        # Also what a crashed step left; servers of step 7 have a reaper of their own.
        reaper.kill_sessions({process.pid})
        process.wait()


@contextlib.contextmanager
def _put_off(number: signal.Signals) -> Iterator[list[int]]:
    """Note a signal instead of acting on it: a process half started would be nobody's to end."""
    came: list[int] = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(number, before)


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
