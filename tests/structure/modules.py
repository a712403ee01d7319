"""The modules of the package, each with the first sentence of its docstring, as a Markdown list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROLE = re.compile(r":\w+:`")
"""A role of reStructuredText before a name, which Markdown would show."""


class NoDocstringError(Exception):
    """A module does not say what it is."""


def sentence(file: Path) -> str:
    """The first paragraph of a module's docstring, on one line.

    Raises:
        NoDocstringError: names the module that has none.
    """
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    if not text:
        raise NoDocstringError(f"{file}: begin it with a docstring that says what it is")
    first = " ".join(text.partition("\n\n")[0].split())
    return ROLE.sub("`", first).replace("``", "`")


def lines_of(folder: Path, root: Path) -> Iterator[str]:
    """The modules of ``folder`` and its sub-packages, the packages' own sentences first."""
    for file in sorted(folder.rglob("*.py"), key=lambda file: (file.parent, file.name)):
        if file.name != "__init__.py":
            yield f"- `{file.relative_to(folder)}`: {sentence(file)}"
        elif file.parent == folder:
            yield f"`{folder.relative_to(root)}/`: {sentence(file)}"
        else:
            yield f"- `{file.parent.relative_to(folder)}/`: {sentence(file)}"


def module_list(root: Path) -> str:
    """A block for the modules at the package's top, one for each package in it, one for kernels."""
    package = root / "sglang_cdsp"
    tops = [file for file in sorted(package.glob("*.py")) if file.name != "__init__.py"]
    blocks = [
        [
            f"`sglang_cdsp/`: {sentence(package / '__init__.py')}",
            *(f"- `{file.name}`: {sentence(file)}" for file in tops),
        ]
    ]
    folders = sorted(folder.parent for folder in package.glob("*/__init__.py"))
    blocks += [list(lines_of(folder, root)) for folder in (*folders, root / "kernels")]
    return "\n\n".join("\n".join(block) for block in blocks)


def benchmark_list(root: Path) -> str:
    """One line for each program and module under ``bench/``."""
    folder = root / "bench"
    files = (file for file in folder.rglob("*.py") if file.name != "__init__.py")
    ordered = sorted(files, key=lambda file: (file.parent, file.name))
    return "\n".join(f"- `{file.relative_to(folder)}`: {sentence(file)}" for file in ordered)
