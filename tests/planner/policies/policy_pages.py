"""The pages that hold the table of policies, between two markers each.

    python -m tests.planner.policies.policy_pages

writes the table into them anew.
"""

from __future__ import annotations

from pathlib import Path

from sglang_cdsp.planner.policies.registry import policy_table

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "docs" / "planner.md", ROOT / "README.md")
BEGIN, END = "<!-- policies: begin -->\n", "<!-- policies: end -->\n"


def tables(text: str) -> list[str]:
    """What stands between the markers of a page."""
    return [part.partition(END)[0] for part in text.split(BEGIN)[1:]]


def with_tables(text: str) -> str:
    """The page with the table as it is now between its markers."""
    head, *parts = text.split(BEGIN)
    return head + "".join(BEGIN + policy_table() + END + p.partition(END)[2] for p in parts)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
