"""The installed SGLang as syntax trees: nothing of it is imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.Module | ast.ClassDef | Function


class Missing(LookupError):
    """Something that is not in the sources; the text says what."""


@functools.cache
def package() -> Path:
    """Where the package ``sglang`` is installed."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        raise Missing("sglang is not installed")
    return Path(spec.origin).parent


def file_of(module: str) -> Path | None:
    """The file of a module below ``sglang``, None where there is none."""
    base = package().parent.joinpath(*module.split("."))
    found = (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file())
    return next(found, None)


def submodules(name: str) -> list[str]:
    """The modules of a package below ``sglang``."""
    path = file_of(name)
    if path is None:
        raise Missing(f"no package {name}")
    return sorted(f"{name}.{file.stem}" for file in path.parent.glob("[!_]*.py"))


@functools.cache
def tree(module: str) -> ast.Module:
    """A module's syntax tree."""
    path = file_of(module)
    if path is None:
        raise Missing(f"no module {module}")
    return ast.parse(path.read_text(encoding="utf-8"))


def find(module: str, name: str) -> Scope:
    """A class or function by its dotted name inside a module; of overloads the last.

    Raises:
        Missing: says which part is not there.
    """
    scope: Scope = tree(module)
    for part in name.split(".") if name else ():
        found = [
            node
            for node in ast.walk(scope)
            if isinstance(node, ast.ClassDef | Function) and node.name == part
        ]
        inside = [node for node in found if node in scope.body] or found
        if not inside:
            raise Missing(f"{module} has no {name}: {part} is not there")
        scope = inside[-1]
    return scope


def class_of(module: str, name: str) -> ast.ClassDef:
    """A class by name."""
    found = find(module, name)
    if not isinstance(found, ast.ClassDef):
        raise Missing(f"{module}.{name} is not a class")
    return found


def function_of(module: str, name: str) -> Function:
    """A function or method by dotted name."""
    found = find(module, name)
    if not isinstance(found, Function):
        raise Missing(f"{module}.{name} is not a function")
    return found


def top_level_names(module: str) -> set[str]:
    """Names that a module defines or imports, also inside ``if`` and ``try``."""
    names: set[str] = set()
    pending: list[ast.stmt] = list(tree(module).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ClassDef | Function):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names}
            if any(a.name == "*" for a in node.names) and isinstance(node, ast.ImportFrom):
                names |= _starred(module, node)
        else:
            parts = (part for target in targets(node) for part in ast.walk(target))
            names |= {part.id for part in parts if isinstance(part, ast.Name)}
            for block in ("body", "orelse", "finalbody"):
                pending += getattr(node, block, [])
            for handler in getattr(node, "handlers", []):
                pending += handler.body
    return names


def _starred(module: str, node: ast.ImportFrom) -> set[str]:
    if node.level:
        here = file_of(module)
        parts = module.split(".")
        depth = node.level - (1 if here is not None and here.name == "__init__.py" else 0)
        base = ".".join(parts[: len(parts) - depth])
        source = f"{base}.{node.module}" if node.module else base
    else:
        source = node.module or ""
    return top_level_names(source) if file_of(source) else set()


def targets(node: ast.AST) -> list[ast.expr]:
    """What a statement assigns to."""
    if isinstance(node, ast.Assign):
        return list(node.targets)
    if isinstance(node, ast.AnnAssign | ast.AugAssign):
        return [node.target]
    return []


def attributes(owner: ast.ClassDef) -> set[str]:
    """What objects of a class have: its members, and what its methods assign to ``self``."""
    names = {node.name for node in owner.body if isinstance(node, ast.ClassDef | Function)}
    for node in ast.walk(owner):
        for target in targets(node):
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
                    names.add(part.attr)
    return names | fields(owner)


def fields(owner: ast.ClassDef) -> set[str]:
    """What a class assigns or annotates in its body: fields, enum members, constants."""
    found = (target for node in owner.body for target in targets(node))
    return {target.id for target in found if isinstance(target, ast.Name)}
