"""What a command needs beside the plain wheel, and the one line that says how to get it."""

from __future__ import annotations

import importlib.util
import sys
from typing import NoReturn

EXTRAS = {
    "plots": ("matplotlib",),
    "demo": (
        "huggingface_hub",
        "openai",
        "requests",
        "safetensors",
        "sglang_router",
        "tokenizers",
    ),
}
"""Modules by the extra of `pyproject.toml` that brings them."""

SERVER = ("sglang", "torch")
"""Modules that come with SGLang, which no extra installs: see docs/install.md."""


def remedy(module: str) -> str:
    """What installs a module, by its whole name or that of its package."""
    top = module.partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return f"pip install 'sglang-cdsp[{extra}]'"
    if top in SERVER:
        return "install SGLang, see docs/install.md"
    return f"pip install {top.replace('_', '-')}"


def lacking(modules: tuple[str, ...]) -> str:
    """Which of the modules are not installed, with the remedies; "" if all are."""
    gone = [module for module in modules if not _installed(module)]
    remedies = dict.fromkeys(remedy(module) for module in gone)
    return f"needs {', '.join(gone)}: {'; '.join(remedies)}" if gone else ""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def explain(error: ImportError) -> str:
    """One line for a failed import of somebody else's module.

    Raises:
        ImportError: the same, if the module is this package's: a fault here, not a lack.
    """
    name = error.name or ""
    if not name or name.partition(".")[0] == "sglang_cdsp":
        raise error
    if isinstance(error, ModuleNotFoundError):
        return f"needs {name}: {remedy(name)}"
    return f"needs {name}, which cannot be imported ({error}): {remedy(name)}"


def leave(program: str, error: ImportError) -> NoReturn:
    """Ends the program because of a failed import: one line, exit status 2."""
    print(f"{program}: {explain(error)}", file=sys.stderr)
    raise SystemExit(2)
