"""Real text that every Python installation brings: its own manual and standard library."""

import functools
import importlib
import sysconfig
from pathlib import Path

_SOURCES = ("argparse", "asyncio", "collections", "datetime", "email", "http", "json", "logging")
_MAX_SOURCE_CHARS = 1_500_000


@functools.cache
def manual_text() -> str:
    """Return the topics of Python's manual that ``help()`` shows: about 700 kB of English."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


@functools.cache
def source_text() -> str:
    """Return standard library sources in a fixed order, at most 1.5 million characters."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for name in _SOURCES
        for path in sorted([*root.glob(f"{name}.py"), *(root / name).rglob("*.py")])
        if "__pycache__" not in path.parts
    ]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    return text[:_MAX_SOURCE_CHARS]
