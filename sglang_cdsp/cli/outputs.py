"""Whether what a command is to write can be written: tried before anything slow starts."""

from __future__ import annotations

import tempfile
from pathlib import Path


class OutputError(ValueError):
    """A file or folder cannot be written; names the flag and the remedy."""


def check_file(path: Path | None, flag: str) -> None:
    """Makes sure that the file can be written; its folder is made if need be. None: no file.

    A file that is there stays as it is.

    Raises:
        OutputError: it cannot.
    """
    if path is None:
        return
    try:
        there = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise OutputError(unwritable(path, flag, error)) from error


def check_folder(path: Path | None, flag: str) -> None:
    """Makes the folder if need be, and makes sure that files can be written in it.

    Raises:
        OutputError: they cannot.
    """
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OutputError(unwritable(path, flag, error)) from error


def check_input(path: Path | None, flag: str) -> None:
    """Makes sure that the file can be read.

    Raises:
        OutputError: it cannot.
    """
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise OutputError(f"{flag} {path}: {error.strerror or error}; name another file") from error


def unwritable(path: Path, flag: str, error: OSError) -> str:
    """The one line for an output that cannot be written."""
    return f"{flag} {path}: {error.strerror or error}; name a place that can be written"
