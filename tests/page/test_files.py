"""The page's files: nothing from outside, clients' words as text only, colours that can be read."""

from __future__ import annotations

import hashlib
import re
from itertools import product
from pathlib import Path

import pytest

import sglang_cdsp.page

ASSETS = Path(sglang_cdsp.page.__file__).parent / "assets"
VENDOR = ASSETS / "vendor"
OURS = [
    file
    for file in sorted(ASSETS.rglob("*"))
    if file.suffix in (".js", ".css", ".html") and VENDOR not in file.parents
]
PINNED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
"""SHA-256 of the library's files, as the registry's package uplot-1.6.32 has them."""

TEXT = ("ink", "quiet", "accent", "good", "warn", "bad")
BARS = [f"c{number}" for number in range(8)]
Colour = tuple[float, float, float]


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_nothing_comes_from_outside(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", text)


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_nothing_makes_elements_of_text(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in text
    assert not re.search(r"\bon[a-z]+=|javascript:|<style|style=", text)


def test_every_file_that_is_named_is_there() -> None:
    index = (ASSETS / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="cdsp/page/([^"]+)"', index)
    for file in OURS:
        imports = re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8"))
        named += imports
    assert len(named) > 10
    assert [name for name in named if not (ASSETS / name).is_file()] == []


def test_the_library_is_the_pinned_one_with_its_licence() -> None:
    folder = VENDOR / "uplot"
    for name, digest in PINNED.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert "The MIT License (MIT)" in (folder / "LICENSE").read_text(encoding="utf-8")


# -- colours --------------------------------------------------------------------------------


def palette() -> dict[str, tuple[Colour, Colour]]:
    """The colours by name, light and dark, as linear RGB."""
    text = (ASSETS / "colours.css").read_text(encoding="utf-8")
    found = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", text)
    return {name: (linear(light), linear(dark)) for name, light, dark in found}


def linear(code: str) -> Colour:
    """An sRGB colour as linear light, as WCAG 2.2 defines relative luminance."""
    parts = [int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return red, green, blue


def contrast(one: Colour, other: Colour) -> float:
    """WCAG 2.2's contrast ratio of two colours."""
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05 for r, g, b in (one, other)]
    return max(light) / min(light)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_can_be_read(theme: int) -> None:
    colours = {name: pair[theme] for name, pair in palette().items()}
    text = [*product(TEXT, ("card", "page")), ("quiet", "hover"), ("ink", "hover")]
    text += [("on-bar", bar) for bar in BARS]
    text += [("on-accent", "accent"), ("bad", "bad-back")]
    marks = [*product((*BARS, "strip", "curve-1", "curve-2", "curve-3", "accent"), ("card",))]
    marks += [("edge", "card")]
    weak = {
        f"{one} on {other}": round(found, 2)
        for pairs, least in ((text, 4.5), (marks, 3.0))
        for one, other in pairs
        if (found := contrast(colours[one], colours[other])) < least
    }
    assert weak == {}
