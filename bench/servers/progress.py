"""Progress of the benchmarks on real servers."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Print a line of progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)
