"""Whether packages can be installed here."""

from __future__ import annotations

import subprocess
import sys
import tempfile

TIMEOUT_S = 60


def index_answers() -> bool:
    """Whether pip's index offers a small package that the wheel needs."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        command += ["--quiet", "--no-deps", "--dest", scratch, "greenlet"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
