"""The whole table, and the page made from it."""

from __future__ import annotations

from itertools import groupby

from tests.contract import (
    control_rows,
    controller_rows,
    decode_limit_rows,
    decode_rows,
    family_rows,
    forward_rows,
    joining_rows,
    message_rows,
    mooncake_decode_rows,
    mooncake_rows,
    number_rows,
    platform_rows,
    plugin_rows,
    prefix_rows,
    req_state_rows,
    request_rows,
    scheduler_rows,
    seat_rows,
    transfer_rows,
    watch_rows,
)
from tests.contract.row import Row

SECTIONS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("The scheduler and the chunk engine", (*scheduler_rows.ROWS, *request_rows.ROWS)),
    ("Computed prompts in SGLang's running batch", joining_rows.ROWS),
    ("Cached prefixes that plans start from", prefix_rows.ROWS),
    ("Requests that go on at another instance", req_state_rows.ROWS),
    (
        "The pool controller, its messages and the plugin",
        (*controller_rows.ROWS, *message_rows.ROWS, *plugin_rows.ROWS),
    ),
    ("Seats: starting, watching and replacing schedulers", seat_rows.ROWS),
    (
        "KV transfer and the face towards decode",
        (*transfer_rows.ROWS, *decode_rows.ROWS, *decode_limit_rows.ROWS),
    ),
    ("KV transfer over Mooncake", (*mooncake_rows.ROWS, *mooncake_decode_rows.ROWS)),
    ("A shard's forward and its attention", (*forward_rows.ROWS, *family_rows.ROWS)),
    ("Processes that watch each other", watch_rows.ROWS),
    ("SGLang's own numbers", number_rows.ROWS),
    ("Control endpoints and messages", control_rows.ROWS),
    ("The torch-only CPU platform", platform_rows.ROWS),
)
ROWS = tuple(row for _, rows in SECTIONS for row in rows)

INTRODUCTION = """\
# What is relied on in SGLang

Everything that the package hooks, subclasses, calls or reads in the tested SGLang releases, with
the modules that rely on it (what differs between them: [releases.md](releases.md)).
`tests/contract` holds the same table as code and checks it against the sources of the installed
wheel, without importing them: drift upstream shows as a red test that names our modules, not as a
wrong answer. This page is written from that table:

    python -m tests.contract.table > docs/upstream.md
"""


def cell(text: str) -> str:
    """A text for a Markdown table."""
    return text.replace("|", "\\|")


def page() -> str:
    """The table in words, as Markdown."""
    parts = [INTRODUCTION]
    for title, rows in SECTIONS:
        parts.append(f"\n## {title}\n")
        ordered = sorted(rows, key=lambda row: row.need.module)
        for module, group in groupby(ordered, key=lambda row: row.need.module):
            parts.append(f"\n### `{module}`\n")
            parts.append("\n| relied on | why | by |\n|---|---|---|\n")
            for row in group:
                by = ", ".join(f"`{name}`" for name in row.by)
                parts.append(f"| {cell(row.need.words())} | {row.why} | {by} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
