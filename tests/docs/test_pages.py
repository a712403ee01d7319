"""Pages lead to files, modules and names that exist."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import pytest

from sglang_cdsp.args import add_cli_args

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "patches/*.md", "examples/*.md", "bench/**/*.md")
    for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)?(#[\w-]+)?\)")
MODULE = re.compile(r"python -m\s+((?:sglang_cdsp|bench|tests)(?:\.\w+)*)")
CLASS = re.compile(r"`([A-Z][a-z]+(?:[A-Z][A-Za-z]*)+)`")
PATH = re.compile(r"`((?:tests|bench|kernels|docs)/[\w/.*]+)(?:::[^`]*)?`")
FLAG = re.compile(r"^\| `(--cdsp[\w-]*)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings of ``page`` as links name them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{named(page)} links to {path}"
        assert not anchor or anchor in anchors(target), f"{named(page)} links to {path}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_modules_that_are_run_exist(page: Path) -> None:
    for module in MODULE.findall(page.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module), f"{named(page)} runs {module}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_exist(page: Path) -> None:
    for path in PATH.findall(page.read_text(encoding="utf-8")):
        assert list(ROOT.glob(path.rstrip("/"))), f"{named(page)} names {path}"


def test_the_structure_page_names_classes_that_exist() -> None:
    files = (ROOT / "sglang_cdsp").rglob("*.py")
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    names = set(CLASS.findall((ROOT / "docs" / "structure.md").read_text(encoding="utf-8")))
    assert len(names) > 15
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} == set()


def test_the_usage_page_has_every_flag() -> None:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    rows = FLAG.findall((ROOT / "docs" / "usage.md").read_text(encoding="utf-8"))
    assert sorted(rows) == sorted(flag for flag in flags if flag.startswith("--cdsp"))
