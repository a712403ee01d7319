"""MkDocs' hooks: the site is made of the repository's pages where they are, not of one folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # MkDocs runs this file by its path

from docs.site.links import HOME, navigation, site_files  # noqa: E402
from docs.site.markdown import for_mkdocs  # noqa: E402


def _files() -> list[str]:
    starts = [HOME, *(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
    return site_files(ROOT, starts)


def on_config(config: Any) -> Any:
    """Every page is in the navigation."""
    config.nav = navigation(_files())
    return config


def on_files(files: Files, config: Any) -> Files:
    """The repository's files in place of those in the documentation's folder."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    own = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in _files()]
    return Files([*theme, *own])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Pages are written for GitHub."""
    return for_mkdocs(markdown)
