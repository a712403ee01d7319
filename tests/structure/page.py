"""Write into ``docs/structure.md`` what the code itself says of modules and imports.

::

    python -m tests.structure.page            # rewrites the blocks between markers
    python -m tests.structure.page --check    # status 1 if one of them is stale
"""

from __future__ import annotations

import argparse
import sys

from tests.structure.modules import NoDocstringError, benchmark_list, module_list
from tests.structure.picture import current_picture
from tests.structure.source import ROOT

PAGE = ROOT / "docs" / "structure.md"
COMMAND = "python -m tests.structure.page"


class PlaceError(Exception):
    """The page has no place for a block."""


def markers(name: str) -> tuple[str, str]:
    """The lines before and after the block ``name``."""
    return f"<!-- {name}: written by `{COMMAND}` -->", f"<!-- end of {name} -->"


def insert(page: str, name: str, block: str) -> str:
    """``page`` with ``block`` between its markers.

    Raises:
        PlaceError: a marker is missing.
    """
    begin, end = markers(name)
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise PlaceError(f"no place for the {name}: put the lines {begin} and {end} there")
    return f"{before}{begin}\n{block}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; return the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--check", action="store_true", help="only say whether it is stale")
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    try:
        fresh = insert(page, "modules", module_list(ROOT))
        fresh = insert(fresh, "benchmarks", benchmark_list(ROOT))
        fresh = insert(fresh, "imports", current_picture())
    except (PlaceError, NoDocstringError) as error:
        print(f"{PAGE}: {error}", file=sys.stderr)
        return 2
    if options.check and fresh != page:
        print(f"{PAGE}: stale; run {COMMAND}", file=sys.stderr)
        return 1
    if fresh != page:
        PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
