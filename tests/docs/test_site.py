"""Which files the documentation site has; ``make site`` builds it and finds broken links."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from docs.site.links import HOME, SECTIONS, linked, navigation, site_files
from docs.site.markdown import for_mkdocs

ROOT = Path(__file__).parents[2]


def paths(nav: list[dict[str, Any]]) -> list[str]:
    """The pages of a navigation, in order."""
    found: list[str] = []
    for section in nav:
        for value in section.values():
            found += [value] if isinstance(value, str) else value
    return found


def test_every_page_of_the_documentation_is_there_once() -> None:
    docs = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
    files = site_files(ROOT, [HOME, *docs])
    shown = paths(navigation(files))
    assert sorted(shown) == [path for path in files if path.endswith(".md")]
    assert {*docs, HOME, "examples/README.md", "CHANGELOG.md", "patches/README.md"} <= {*shown}
    assert "examples/own_policy.py" in files, "what pages lead to comes along"


def test_the_navigation_names_pages_that_exist() -> None:
    named = [path for section in SECTIONS.values() for path in section]
    assert len({*named}) == len(named)
    assert [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize(
    ("page", "target", "path"),
    [
        ("docs/planner.md", "usage.md", "docs/usage.md"),
        ("docs/planner.md", "../examples/own_policy.py", "examples/own_policy.py"),
        ("README.md", "docs/usage.md#flags", "docs/usage.md"),
        ("bench/results/README.md", "./a.png", "bench/results/a.png"),
    ],
)
def test_links_lead_from_the_root(page: str, target: str, path: str) -> None:
    assert linked(PurePosixPath(page), f"see [this]({target}), ![that]({target})") == {path}


@pytest.mark.parametrize(
    "target", ["https://a.org/b.md", "mailto:a@b.org", "#here", "../../out.md"]
)
def test_links_out_of_the_repository_are_nobodys(target: str) -> None:
    assert linked(PurePosixPath("docs/a.md"), f"[this]({target})") == set()


def test_pages_that_nobody_leads_to_are_left_out(tmp_path: Path) -> None:
    for name, text in (
        ("a.md", "[b](sub/b.md) [c](gone.md)"),
        ("z.md", ""),
        ("sub/b.md", "[a](../a.md) [d](d.json)"),
        ("sub/d.json", "{}"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert site_files(tmp_path, ["a.md", "none.md"]) == ["a.md", "sub/b.md", "sub/d.json"]
    assert paths(navigation(["README.md", "sub/b.md", "docs/new.md", "docs/usage.md"])) == [
        *("README.md", "docs/usage.md", "docs/new.md", "sub/b.md"),
    ]


def test_the_site_needs_pinned_packages_only() -> None:
    """What MkDocs loads comes from requirements/docs.txt; its pins do not contradict the others."""
    pins: dict[str, set[str]] = {}
    for file in ("cpu", "dev", "docs"):
        text = (ROOT / "requirements" / f"{file}.txt").read_text(encoding="utf-8")
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE):
            pins.setdefault(name.lower().replace("_", "-"), set()).add(version)
    assert {"mkdocs", "mkdocs-material", "pymdown-extensions"} <= pins.keys()
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}


def test_the_site_is_built_strictly() -> None:
    class Loader(yaml.SafeLoader):
        """Python's names in the file are for MkDocs to look up."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    assert config["strict"] is True
    assert config["site_dir"].startswith("build/")
    assert set(config["validation"]["links"].values()) == {"warn"}
    assert config["theme"]["font"] is False, "the theme would ask Google for it"
    assert "repo_url" not in config, "the theme would ask GitHub for its stars"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two:\n- a\n  b\n- c\n\nd", "Two:\n\n- a\n  b\n- c\n\nd"),
        ("Two:\n1. a\n2. b", "Two:\n\n1. a\n2. b"),
        ("Two:\n\n- a\n- b", "Two:\n\n- a\n- b"),
        ("```\nx\n- a\n```\ny\n- a", "```\nx\n- a\n```\ny\n\n- a"),
        ("- a\n\n- b\nc\n- d", "- a\n\n- b\nc\n\n- d"),
        ("a - b\n-c\n1.d", "a - b\n-c\n1.d"),
    ],
)
def test_lists_after_paragraphs_are_lists(text: str, expected: str) -> None:
    assert for_mkdocs(text) == expected
    assert for_mkdocs(expected) == expected
