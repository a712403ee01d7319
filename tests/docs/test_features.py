"""The table of client features names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "features.md"
NAMED = re.compile(r"`([\w/]+\.py)(?:::(\w+))?(?:\[(\w+)\])?`")


def rows() -> list[list[str]]:
    """The cells of the table, without its head."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def sources(file: Path) -> list[str]:
    """A test module, and what it shares with others."""
    text = file.read_text(encoding="utf-8")
    shared = {
        node.module.replace(".", "/")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module and ".shared." in node.module
    }
    return [text, *((TESTS.parent / f"{m}.py").read_text(encoding="utf-8") for m in sorted(shared))]


def named_in(text: str) -> set[str]:
    """The functions that a module has, or imports."""
    nodes = [*ast.walk(ast.parse(text))]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    imports = (node for node in nodes if isinstance(node, ast.ImportFrom))
    return own | {name.name for node in imports for name in node.names}


def test_every_row_is_whole_and_names_a_test() -> None:
    assert len(rows()) > 40
    for row in rows():
        assert len(row) == 5, row
        assert all(row), row
        assert NAMED.search(row[4]), f"no test named: {row}"


def test_every_named_test_exists() -> None:
    for *_, cell in rows():
        for path, name, case in NAMED.findall(cell):
            file = TESTS / path
            assert file.is_file(), path
            text = "\n".join(sources(file))
            functions = {
                n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)
            }
            assert not name or name in functions, f"{path} has no {name}"
            assert not case or f'"{case}"' in text, f"{path} has no case {case}"


def test_what_is_the_same_in_one_server_is_tried_there() -> None:
    found = 0
    for row in rows():
        for path, name, _ in NAMED.findall(row[4]) if row[3] == "same" else ():
            file = TESTS / "serving_unified" / Path(path).name
            assert name in named_in(file.read_text(encoding="utf-8")), f"{file.name} lacks {name}"
            found += 1
    assert found > 30


def test_no_feature_stands_twice() -> None:
    features = [row[0] for row in rows()]
    assert len(features) == len(set(features))
