"""Why a scheduler refuses to start, left where the controller finds it once it has ended.

SGLang's schedulers have no way to say it: their pipe to the controller stays silent, and what they
print is buried under what the other processes print meanwhile.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def place(board: str) -> Path:
    """Where the words lie of the schedulers that share a ``ProgressBoard``'s path."""
    return Path(f"{board}.words")


def leave(board: str, words: str) -> None:
    """Say why this scheduler ends; of several schedulers, the last one's words stay."""
    target = place(board)
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(words)
    Path(name).replace(target)


def find(board: str) -> str:
    """What a scheduler has said, and remove it; "" if none has."""
    try:
        words = place(board).read_text(encoding="utf-8")
    except OSError:
        return ""
    place(board).unlink(missing_ok=True)
    return words
