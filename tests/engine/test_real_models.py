"""SGLang's own models with weights, whatever the plan, give transformers' log-probabilities.

All of it but processes: layers and experts of SGLang, chunks, slots, moves and links of the pool.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_cdsp.testing.family_checkpoints import RECIPES

LATENT = {"deepseek-v3", "deepseek-r1", "glm-4.7-flash", "kimi-k2", "mistral-large"}
"""Have rows of a kind that the pool here does not keep."""

TOLERANCE = 1e-3


@pytest.mark.slow
def test_whole_models_give_what_transformers_give(tmp_path: Path) -> None:
    families = sorted(set(RECIPES) - LATENT)
    command = [sys.executable, "-m", "tests.engine.real_models", str(tmp_path), *families]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    gaps = json.loads(done.stdout.splitlines()[-1])
    print(gaps)
    assert set(gaps) == set(families)
    assert max(gaps.values()) <= TOLERANCE
