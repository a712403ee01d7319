"""The whole program without a GPU: every step on small shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    document = dry_run("1-5", tmp_path / "gpu.json")
    assert document["summary"] == "5 passed, 0 failed, 0 skipped"
    assert document["machine"]["torch"]
    names = [check["name"] for step in document["steps"] for check in step["checks"]]
    for part in ("merge_into", "torch-cpu-flash", "KV ring of 8", "Q ring of 2", "NIXL", "NCCL"):
        assert any(part in name for name in names), part


@pytest.mark.serving
def test_servers(tmp_path: Path) -> None:
    document = dry_run("6", tmp_path / "gpu.json")
    assert document["summary"] == "1 passed, 0 failed, 0 skipped"
    (step,) = document["steps"]
    figures = {check["name"]: check["figures"] for check in step["checks"]}
    answers = [found for name, found in figures.items() if "tokens, " in name and "tokens" in found]
    assert len(answers) == 10
    assert sum(found["tokens"] for found in answers) > 8 * 8
