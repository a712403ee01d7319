"""GitHub's Markdown as Python-Markdown, which MkDocs renders with, takes it."""

from __future__ import annotations

import re

ITEM = re.compile(r"(?:[-*]|\d+\.) ")
FENCE = re.compile(r" *(```|~~~)")


def for_mkdocs(text: str) -> str:
    """A page with an empty line before each list that follows a paragraph at once.

    Without it Python-Markdown takes the list for a part of the paragraph.
    """
    lines: list[str] = []
    before, in_list, fenced = "", False, False
    for line in text.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        is_item = not fenced and ITEM.match(line) is not None
        if is_item and not in_list and before.strip():
            lines.append("")
        in_list = not fenced and (is_item or (in_list and (line.startswith(" ") or not line)))
        lines.append(line)
        before = line
    return "\n".join(lines)
