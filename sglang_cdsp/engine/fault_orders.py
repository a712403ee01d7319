"""Faults that a test orders in a running server: files in a folder, each one fault.

Whoever tests puts an order into the folder that the environment variable names. The rank that it
is aimed at takes it when the moment has come, so that exactly one process carries it out, and
leaves a note of when and where. Nothing of this is looked at where the variable is not set.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER_VAR = "SGLANG_CDSP_TEST_FAULTS"
"""Environment variable: the folder in which a running server looks for orders."""

WAYS = ("kill", "stop", "exception", "cuda", "watchdog", "slow-link")
"""What an order does to its rank.

``kill`` and ``stop`` are SIGKILL and SIGSTOP that it sends to itself. ``exception`` leaves the
scheduler's loop. ``cuda`` is an error as torch raises it for a kernel that failed, and comes back
at every later turn, as a broken device's does. ``watchdog`` is SGLang's complaint about a loop that
stands still: SIGQUIT to the parent, and the loop does stand still. ``slow-link`` delays what the
rank sends to other instances.
"""

MOMENTS = ("turn", "idle", "between", "layer", "transfer", "start", "join")
"""When an order is carried out.

``turn``: at any turn of the loop. ``idle``: at one with no task. ``between``: a task has run a
chunk, and its next one has not begun. ``layer``: inside a chunk's forward, at a layer.
``transfer``: a chunk was computed, and writes of its KV to decode have not ended. ``start``: before
the model is loaded. ``join``: at the first turn of a new process, before it takes part.
"""


_GIVEN = ".json"


@dataclass(frozen=True)
class FaultOrder:
    """A fault, where it happens, and when.

    Attributes:
        way, moment: of ``WAYS``, of ``MOMENTS``.
        seat, rank: the instance and its tensor-parallel rank.
        incarnation: the life of the seat, None for whichever comes to the moment first.
        skip: so many such moments pass first.
        delay_s: seconds by which a slow link delays each block.
        for_s: seconds until a slow link is as before.
    """

    way: str
    seat: int
    moment: str = "turn"
    rank: int = 0
    incarnation: int | None = None
    skip: int = 0
    delay_s: float = 0.1
    for_s: float = 5.0

    def __post_init__(self) -> None:
        if self.way not in WAYS or self.moment not in MOMENTS:
            raise ValueError(
                f"no fault {self.way!r} at {self.moment!r}: ways are {', '.join(WAYS)}, moments "
                f"{', '.join(MOMENTS)}"
            )

    def aims_at(self, seat: int, rank: int, incarnation: int) -> bool:
        """Whether it is for this process."""
        return (self.seat, self.rank) == (seat, rank) and self.incarnation in (None, incarnation)


@dataclass(frozen=True)
class Fired:
    """An order that was carried out.

    Attributes:
        pid, incarnation: of the process that took it.
        at_unix_s: when, on the wall clock.
    """

    pid: int
    incarnation: int
    at_unix_s: float


@dataclass(frozen=True)
class FaultFolder:
    """Where orders lie: ``NAME.json`` when given, ``NAME.taken`` when a process has it."""

    path: Path

    def give(self, name: str, order: FaultOrder) -> None:
        """Lay an order down; it is there whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.path / f"{name}{_GIVEN}", asdict(order))

    def withdraw(self, name: str) -> bool:
        """Take an order back; False if a process was faster."""
        try:
            (self.path / f"{name}{_GIVEN}").unlink()
        except FileNotFoundError:
            return False
        return True

    def names(self) -> frozenset[str]:
        """The orders that nobody has taken."""
        try:
            files = os.listdir(self.path)
        except FileNotFoundError:
            return frozenset()
        return frozenset(file[: -len(_GIVEN)] for file in files if file.endswith(_GIVEN))

    def read(self, name: str) -> FaultOrder | None:
        """An order; None if somebody has taken it."""
        try:
            text = (self.path / f"{name}{_GIVEN}").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return FaultOrder(**json.loads(text))

    def take(self, name: str, incarnation: int) -> bool:
        """Be the process that carries an order out; False if another one is."""
        source = self.path / f"{name}{_GIVEN}"
        try:
            os.rename(source, self.path / f"{name}.taken")
        except FileNotFoundError:
            return False
        _write(self.path / f"{name}.fired", asdict(Fired(os.getpid(), incarnation, time.time())))
        return True

    def fired(self, name: str) -> Fired | None:
        """What became of an order, None while nothing has."""
        try:
            return Fired(**json.loads((self.path / f"{name}.fired").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


def requested_folder() -> FaultFolder | None:
    """The folder that the environment names, if it does."""
    text = os.environ.get(FOLDER_VAR)
    return FaultFolder(Path(text)) if text else None


def _write(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(data) + "\n", encoding="utf-8")
    os.rename(partial, path)
