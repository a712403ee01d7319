"""The whole program without a GPU: every step on small shapes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.gpu.steps import ROOT


def dry_run(steps: str, out: Path) -> dict[str, Any]:
    """Run the program; it must pass and leave its results."""
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--steps", steps, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    document: dict[str, Any] = json.loads(out.read_text())
    assert done.stdout.splitlines()[-1] == document["summary"]
    return document


@pytest.mark.slow
def test_steps_without_servers(tmp_path: Path) -> None:
    document = dry_run("1-6", tmp_path / "gpu.json")
    assert document["summary"] == "6 passed, 0 failed, 0 skipped"
    assert document["machine"]["torch"]
    names = [check["name"] for step in document["steps"] for check in step["checks"]]
    for part in (
        "merge_into",
        "torch-cpu-flash",
        "KV ring of 8",
        "Q ring of 2",
        "NIXL",
        "links over NIXL",
        "33 rows after 0, emulated",
    ):
        assert any(part in name for name in names), part


@pytest.mark.serving
def test_servers(tmp_path: Path) -> None:
    document = dry_run("7", tmp_path / "gpu.json")
    assert document["summary"] == "1 passed, 0 failed, 0 skipped"
    (step,) = document["steps"]
    figures = {check["name"]: check["figures"] for check in step["checks"]}
    answers = [found for name, found in figures.items() if "tokens, " in name and "tokens" in found]
    assert len(answers) == 10
    assert sum(found["tokens"] for found in answers) > 8 * 8


@pytest.mark.serving
def test_one_server(tmp_path: Path) -> None:
    document = dry_run("8", tmp_path / "gpu.json")
    assert document["summary"] == "1 passed, 0 failed, 0 skipped"
    (step,) = document["steps"]
    figures = {check["name"]: check["figures"] for check in step["checks"]}
    answers = [found for name, found in figures.items() if "tokens, " in name and "tokens" in found]
    assert len(answers) == 12
    assert sum(found["tokens"] for found in answers) > 12 * 16
    assert figures["chunks beside decode"]["token ms"] > 0


@pytest.mark.slow
def test_a_program_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--steps", "2"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "gpu.json")], cwd=ROOT, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert b"step 2" in program.stdout.readline()
        deadline = time.monotonic() + 30
        while not (started := descendants(program.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert started
        program.terminate()
        assert program.wait(timeout=60) == 128 + signal.SIGTERM
    assert not [process for process in started if process.is_running() and alive(process)]


def descendants(pid: int) -> list[psutil.Process]:
    """Processes that it has started, and those that they have."""
    return psutil.Process(pid).children(recursive=True)


def alive(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has reaped."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
