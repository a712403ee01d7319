"""Why a scheduler refuses to start, left where the controller finds it once it has ended.

SGLang's schedulers have no way to say it: their pipe to the controller stays silent, and what they
print is buried under what the other processes print meanwhile.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path


def new_place() -> str:
    """A path at which nothing lies yet, for the schedulers of one pool."""
    return str(Path(tempfile.gettempdir(), f"sglang-cdsp-{secrets.token_hex(8)}.words"))


def leave(place: str, words: str) -> None:
    """Say why this scheduler ends; of several schedulers, the last one's words stay."""
    target = Path(place)
    descriptor, name = tempfile.mkstemp(dir=target.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(words)
    Path(name).replace(target)


def find(place: str) -> str:
    """What a scheduler has said, and remove it; "" if none has."""
    try:
        words = Path(place).read_text(encoding="utf-8")
    except OSError:
        return ""
    Path(place).unlink(missing_ok=True)
    return words


def one_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
