"""One program at a time in a directory."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sglang_cdsp.stack.processes import ServerFailedError

LOCK_FILE = ".lock"


class DirectoryInUseError(ServerFailedError):
    """Nothing was started, since another program works in the directory; names it."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other programs out of ``directory``, which is made, until the block ends.

    The kernel gives the lock up with the process, however it ends; the file stays.

    Raises:
        DirectoryInUseError: another program is in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DirectoryInUseError(
                f"{directory} is in use by process {file.read().strip() or '(not known yet)'}; "
                "end that, or choose another directory"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
