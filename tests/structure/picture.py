"""Which part of the package imports which, from the code's own imports, as a Mermaid graph.

A part is a package or a module at the top of ``sglang_cdsp``. A solid arrow is an import, wherever
it stands in a module. A dotted arrow is a name in a string that somebody imports later, in the form
``"sglang_cdsp.part.module:name"``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grimp

from tests.structure.source import PACKAGE, ROOT, installed_tree


@dataclass(frozen=True, order=True)
class Arrow:
    """One part of the package uses another.

    Attributes:
        source: the part that uses.
        target: the part that is used.
        named: the use is a name in a string, not an import.
    """

    source: str
    target: str
    named: bool = False


def part(module: str) -> str:
    """The part of the package that ``module`` belongs to."""
    return module.split(".")[1]


def imports(graph: grimp.ImportGraph) -> set[Arrow]:
    """The arrows between parts in ``graph``, those inside a part left out."""
    pairs = {
        (part(module), part(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if "." in module and "." in imported
    }
    return {Arrow(source, target) for source, target in pairs if source != target}


def names_in_strings(source: str) -> Iterator[str]:
    """Modules of the package named as ``"module:attribute"`` in the strings of ``source``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, attribute = node.value.partition(":")
            if (
                module.startswith(f"{PACKAGE}.")
                and colon
                and all(name.isidentifier() for name in (*module.split("."), attribute))
            ):
                yield module


def named(root: Path) -> set[Arrow]:
    """The arrows that stand in strings of the package under ``root``."""
    package = root / PACKAGE
    found = set()
    for file in sorted(package.rglob("*.py")):
        own = file.relative_to(package).with_suffix("").parts[0]
        for module in names_in_strings(file.read_text(encoding="utf-8")):
            if part(module) != own:
                found.add(Arrow(own, part(module), named=True))
    return found


def draw(arrows: Iterable[Arrow]) -> str:
    """A Mermaid graph of ``arrows``, in the order of their names."""
    lines = [
        f"    {arrow.source} {'-.->' if arrow.named else '-->'} {arrow.target}"
        for arrow in sorted(arrows)
    ]
    return "\n".join(("```mermaid", "graph TD", *lines, "```"))


def current_picture() -> str:
    """The picture of the package as it is now."""
    with installed_tree():
        graph = grimp.build_graph(PACKAGE, cache_dir=None)
    return draw(imports(graph) | named(ROOT))
