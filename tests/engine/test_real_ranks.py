"""SGLang's own latent models with two ranks an instance answer as transformers do, by any plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 2
TOLERANCE = 1e-3


@pytest.mark.slow
def test_two_ranks_an_instance_answer_as_transformers_do(tmp_path: Path) -> None:
    """Weights are shared out among ranks by SGLang, latent rows on the links by the ranks here."""
    families = ("deepseek-r1", "glm-4.7-flash", "kimi-k2", "mistral-large")
    program = [sys.executable, "-m", "tests.engine.real_ranks", str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), str(SIZE), *families],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # SGLang compiles an activation here and there, which takes minutes.
            env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},
        )
        for rank in range(SIZE)
    ]
    try:
        said = [rank.communicate(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (out, err) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, err[-3000:]
        gaps = json.loads(out.splitlines()[-1])
        print(f"\nlargest gaps: {gaps}")
        assert set(gaps) == set(families)
        assert max(gaps.values()) <= TOLERANCE
