"""The page about upgrades keeps up with versions, releases, flags and variables."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from sglang_cdsp import __version__
from sglang_cdsp.args import TESTED_SGLANG_VERSIONS, add_cli_args

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "upgrade.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_each_version_but_the_newest_has_a_section() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", CHANGELOG, re.MULTILINE)
    assert __version__ in versions
    unreleased = "## [Unreleased]" in CHANGELOG
    for version in versions if unreleased else versions[1:]:
        assert f"## From {version} to " in PAGE


def test_it_names_the_releases_of_sglang_that_are_served() -> None:
    pinned, newest = TESTED_SGLANG_VERSIONS
    assert f"Today these are {pinned}, which is\npinned, and {newest}." in PAGE


def test_flags_and_variables_that_it_names_exist() -> None:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    named = set(re.findall(r"--cdsp[a-z-]*[a-z]", PAGE))
    assert len(named) >= 4
    assert named <= flags
    source = "\n".join(f.read_text(encoding="utf-8") for f in (ROOT / "sglang_cdsp").rglob("*.py"))
    variables = set(re.findall(r"SGLANG_CDSP_[A-Z_]*[A-Z](?=[`=])", PAGE))
    assert variables
    assert {name for name in variables if name not in source} == set()
