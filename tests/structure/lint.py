"""Check the imports of the package against the contracts in ``pyproject.toml``.

::

    python -m tests.structure.lint
"""

from __future__ import annotations

import os
import sys

from importlinter.cli import lint_imports

from tests.structure.source import ROOT, installed_tree


def main() -> int:
    """Print the contracts, kept and broken; return the exit status."""
    with installed_tree() as tree:
        os.chdir(tree)  # the linter looks for the package in the current directory first
        try:
            return lint_imports(str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
        finally:
            os.chdir(ROOT)


if __name__ == "__main__":
    sys.exit(main())
