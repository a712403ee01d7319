"""The package as an installation has it, for tools that read imports from source files.

In the repository ``kernels/`` stands beside ``sglang_cdsp/``; installed, it is a part of it (see
``setup.py``). The imports are those of the installed form, so the tools get a tree of links that
looks like it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "sglang_cdsp"


@contextlib.contextmanager
def installed_tree(root: Path = ROOT) -> Iterator[Path]:
    """Yield a directory that holds the installed form of the package, first on ``sys.path``."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / PACKAGE
        package.mkdir()
        for source in (*(root / PACKAGE).iterdir(), root / "kernels"):
            if source.name != "__pycache__":
                (package / source.name).symlink_to(source)
        sys.path.insert(0, scratch)
        try:
            yield Path(scratch)
        finally:
            sys.path.remove(scratch)
