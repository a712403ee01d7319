"""Which files of the repository the documentation site consists of: what its pages lead to.

Pages keep the places that they have in the repository, so that links between them, and to examples
and results, hold on the site as they do there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

SECTIONS: dict[str, tuple[str, ...]] = {
    "Use": (
        "docs/install.md",
        "docs/usage.md",
        "docs/page.md",
        "docs/one_server.md",
        "docs/prefixes.md",
        "docs/features.md",
        "docs/control.md",
        "docs/models.md",
        "docs/support.md",
        "docs/survive.md",
        "docs/metrics.md",
        "docs/upgrade.md",
        "examples/README.md",
        "examples/monitoring/README.md",
    ),
    "How it works": (
        "docs/structure.md",
        "docs/engine.md",
        "docs/links.md",
        "docs/planner.md",
    ),
    "Results": ("docs/gains.md", "bench/results/README.md"),
    "SGLang": ("docs/releases.md", "docs/upstream.md", "patches/README.md"),
    "Project": ("CONTRIBUTING.md", "CHANGELOG.md"),
}
"""The navigation; pages that it does not name come last in the section of their folder."""

HOME = "README.md"
BY_FOLDER = {"docs": "Use", "bench": "Results", "examples": "Use", "patches": "SGLang"}
"""The section of a page that `SECTIONS` does not name."""

PAGE = ".md"
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)")


def linked(page: PurePosixPath, text: str) -> set[str]:
    """The paths that a page's relative links lead to, from the repository's root.

    Links that lead out of the repository are left out.
    """
    found = set()
    for target in LINK.findall(text):
        parts: list[str] = []
        for part in (*page.parent.parts, *PurePosixPath(target).parts):
            if part == ".." and not parts:
                break
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
        else:
            found.add("/".join(parts))
    return found


def site_files(root: Path, starts: Iterable[str]) -> list[str]:
    """All files that pages lead to, beginning with some pages: sorted paths from the root.

    What is no file is left out: a link to it is found broken when the site is built.
    """
    found: set[str] = set()
    todo = {start for start in starts if (root / start).is_file()}
    while todo:
        path = todo.pop()
        found.add(path)
        if path.endswith(PAGE):
            text = (root / path).read_text(encoding="utf-8")
            targets = linked(PurePosixPath(path), text)
            todo |= {target for target in targets - found if (root / target).is_file()}
    return sorted(found)


def navigation(files: Sequence[str]) -> list[dict[str, Any]]:
    """MkDocs' navigation: every page once, those that `SECTIONS` names in its order."""
    pages = [path for path in files if path.endswith(PAGE) and path != HOME]
    named = {path: name for name, paths in SECTIONS.items() for path in paths}
    sections = {name: [path for path in paths if path in pages] for name, paths in SECTIONS.items()}
    for path in pages:
        if path not in named:
            sections[BY_FOLDER.get(PurePosixPath(path).parts[0], "Project")].append(path)
    return [{"Home": HOME}, *({name: paths} for name, paths in sections.items() if paths)]
