"""What is pinned can be installed where README says that it can."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

LISTS = sorted((Path(__file__).parents[1] / "requirements").glob("*.txt"))

DEBIAN_12 = "3.11.2"
"""Its Python: the oldest that README and docs/install.md name."""


def pins(path: Path) -> Iterator[Requirement]:
    """The pinned packages of a list, without its comments, options and other lists."""
    for line in path.read_text(encoding="utf-8").splitlines():
        stated = line.partition("#")[0].strip()
        if stated and not stated.startswith("-"):
            yield Requirement(stated)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_debians_python_takes_what_is_pinned(path: Path) -> None:
    """Of what is installed in the pinned version; the rest is another environment's."""
    refused, looked_at = [], 0
    for pin in pins(path):
        try:
            known = metadata(pin.name)
        except PackageNotFoundError:
            continue
        if not pin.specifier.contains(known["Version"]):
            continue
        looked_at += 1
        if not SpecifierSet(known["Requires-Python"] or "").contains(DEBIAN_12):
            refused.append(f"{pin} takes Python {known['Requires-Python']}")
    if not looked_at:
        pytest.skip("nothing of it is installed here")
    assert refused == []
