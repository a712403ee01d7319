"""Real models of SGLang's, built without weights: plain ones pass, others show what they do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_plain_models_are_plain_and_the_others_are_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.built_models", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    gemma2 = found.pop("gemma2")
    assert "3 layers have a logit soft cap" in gemma2
    assert len(gemma2) == 1, "windows have a family"
    assert len(found) == 20, "plain ones, and the families'"
    assert set(map(tuple, found.values())) == {()}
