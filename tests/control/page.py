"""The page of the control endpoints, from their table.

::

    python -m tests.control.page > docs/control.md
"""

from __future__ import annotations

from sglang_cdsp.control.table import ENDPOINTS, Effect, Endpoint

HEAD = """\
# Control endpoints

What each endpoint of SGLang's HTTP server does on a pool, beside what it does on a stock prefill
server with as many instances (`--dp-size`). *as stock*: the same. *as stock, when the pool is
quiet*: what changes weights, memory or cache waits until no chunk of the pool runs, and nothing new
starts before it has reached every instance. *refused*: 400 at once, with what to do instead. Keys
are asked for as in stock (`--admin-api-key`, `--api-key`). *absent*: while an instance is absent;
one that is lost meanwhile counts as absent for what is under way, too.

Written by `python -m tests.control.page > docs/control.md` from `sglang_cdsp/control/table.py`; a
route of SGLang's without a row makes `tests/control/test_table.py` fail.
"""
TABLE = (
    "| endpoint | on a pool | stock | the pool | absent | shown by |",
    "|---|---|---|---|---|---|",
)
REQUESTS = "Requests of clients ([features.md](features.md)): {}."


def line(row: Endpoint) -> str:
    """A row of the table."""
    methods = f"{'/'.join(row.methods)} " if row.methods else ""
    said = (row.effect.value, row.stock, row.pool, row.absent)
    cells = (f"`{methods}{row.path}`", *said, f"`{row.test}`")
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    asked = [row for row in ENDPOINTS if row.effect is Effect.REQUEST]
    rows = [line(row) for row in ENDPOINTS if row.effect is not Effect.REQUEST]
    requests = REQUESTS.format(", ".join(f"`{row.path}`" for row in asked))
    return "\n".join((HEAD, *TABLE, *rows, "", requests, ""))


if __name__ == "__main__":
    print(page(), end="")
