"""Test modules take nothing from each other: what they share stands in modules of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.structure.source import ROOT


def imported(file: Path) -> Iterator[str]:
    """The modules that ``file`` imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_test_module_is_imported() -> None:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    taken = {
        str(file.relative_to(ROOT)): module
        for file in files
        for module in imported(file)
        if module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")
    }
    assert len(files) > 150
    assert taken == {}
