"""A folder for a run's files that outlives a run which failed: its logs are what one looks at."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kept_on_failure(name: str) -> Iterator[Path]:
    """A fresh folder; it is removed at the end, unless an exception (not Ctrl-C) ends the block.

    Args:
        name: what the folder's name begins with.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        yield folder
    except Exception:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
