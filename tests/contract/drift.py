"""What the SGLang on the path lacks of all that is relied on.

    PYTHONPATH=UNPACKED_WHEEL:. python -m tests.contract.drift

prints it as JSON, one text a line of the table. Only sources are read: any release will do.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from tests.contract import source
from tests.contract.changed import problem_with
from tests.contract.source import Missing
from tests.contract.table import ROWS

OURS = Path(__file__).parents[2] / "sglang_cdsp"


def modules() -> dict[str, ast.Module]:
    """Our modules by their name below ``sglang_cdsp``."""
    found = {}
    for path in sorted(OURS.rglob("*.py")):
        parts = path.relative_to(OURS).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """``(module, name)`` of everything imported from SGLang."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            for alias in node.names:
                yield node.module or "", alias.name


def unresolved_imports() -> list[str]:
    """Imports of ours that SGLang does not answer."""
    found = []
    for ours, tree in modules().items():
        for module, name in imports(tree):
            try:
                there = source.file_of(f"{module}.{name}") or name in source.top_level_names(module)
            except Missing:
                there = False
            if not there:
                found.append(f"sglang_cdsp.{ours} imports {name} from {module}, which has none")
    return found


def problems() -> list[str]:
    """Everything relied on that is not there, in the order of the table."""
    rows = (f"{row.need.module}: {found}" for row in ROWS if (found := problem_with(row.need)))
    return [*rows, *unresolved_imports()]


if __name__ == "__main__":
    print(json.dumps(problems(), indent=1))
