"""Tests of the form with decode servers, asked of one server too."""

from __future__ import annotations

import importlib
from typing import Any


def again(module: str, *names: str) -> dict[str, Any]:
    """Tests and fixtures of another package by name, to be collected with this one's servers."""
    found = importlib.import_module(module)
    return {name: getattr(found, name) for name in names}
