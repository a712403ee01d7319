"""What a check found, and how a step writes it down while it runs."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TRACE_LINES = 60
"""Lines of a traceback that are kept."""

Figures = Mapping[str, Any]
"""Names to numbers or words, as JSON has them."""


class CheckFailed(AssertionError):
    """What was found is not what must be; the message says both."""


class Skipped(Exception):
    """A step cannot run on this machine; the message says why. Only a step that may be skipped."""


@dataclass(frozen=True)
class Check:
    """One check of a step.

    Attributes:
        name: of what was checked.
        ok: whether it held.
        seconds: wall time that it took.
        figures: what was measured.
        error: "" or the end of the traceback.
    """

    name: str
    ok: bool
    seconds: float
    figures: Figures = field(default_factory=dict)
    error: str = ""


class Recorder:
    """Runs checks one after the other and appends each to a file at once.

    What a step has found so far is kept when it is killed.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self._path = path
        self._say = say
        self.checks: list[Check] = []

    @property
    def folder(self) -> Path:
        """Where a step may leave files."""
        return self._path.parent

    def check(self, name: str, work: Callable[[], Figures | None]) -> bool:
        """Run ``work``; return whether it held. It raises where it does not."""
        started = time.monotonic()
        figures: Figures = {}
        error = ""
        try:
            figures = work() or {}
        except Skipped:
            raise
        except Exception:
            error = "\n".join(traceback.format_exc().splitlines()[-TRACE_LINES:])
        check = Check(name, not error, time.monotonic() - started, figures, error)
        self.checks.append(check)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(check), default=str) + "\n")
        self._say(line_of(check))
        return check.ok


def read_checks(path: Path) -> list[Check]:
    """Read what a recorder wrote; a line that was cut off is left out."""
    checks: list[Check] = []
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            checks.append(Check(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return checks


def line_of(check: Check) -> str:
    """One line for a table."""
    found = ", ".join(f"{name} {shown(value)}" for name, value in check.figures.items())
    words = found if check.ok else check.error.strip().splitlines()[-1][:300]
    return f"  {'ok' if check.ok else 'FAILED':6} {check.seconds:6.1f} s  {check.name}: {words}"


def shown(value: Any) -> str:
    """A number in four digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
