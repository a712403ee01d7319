"""The command line in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cdsp.__main__ import main

FEW = ("--requests", "60", "--rate", "2")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `python -m sglang_cdsp` with these arguments."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `simulate --json` prints; it says nothing else."""
    status, out, err = call(capsys, "simulate", *arguments, "--json")
    assert (status, err) == (0, "")
    shown: dict[str, Any] = json.loads(out)
    return shown
