"""A small disk of its own for the plan log, which can be filled without harm to anybody else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE_BYTES = 8 << 20
_BLOCK = b"\0" * 4096


class NoDiskError(RuntimeError):
    """A disk cannot be made here; says what to do."""


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system of ``SIZE_BYTES``."""

    folder: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            for block in (_BLOCK, b"\0"):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(block)

    def free(self) -> None:
        """Give back what ``fill`` took."""
        (self.folder / "filler").unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a small file system in memory at ``folder`` for the length of the block.

    Raises:
        NoDiskError: that is not allowed here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={SIZE_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise NoDiskError(
            "a full disk needs one that may be filled, and a file system cannot be mounted here "
            f"({mounted.stderr.strip()}): run as root with the right to mount, or take full-disk "
            "out of the scenario"
        )
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: a server that has not quite ended may hold the log open.
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def why_none() -> str:
    """Why no disk can be made here; "" if one can."""
    if os.geteuid():
        return "a full disk needs the right to mount: run as root, or take full-disk out"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk"):
                return ""
        except NoDiskError as error:
            return str(error)
