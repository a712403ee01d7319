"""What a pool's plan log says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def told(plan_log: Path, tokens: int) -> dict[str, Any]:
    """The last line of the plan log about a prompt of so many tokens; it may take a moment."""
    for _ in range(100):
        lines = [json.loads(line) for line in plan_log.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line.get("prompt_tokens") == tokens]
        if found:
            return dict(found[-1])
        time.sleep(0.1)
    raise AssertionError(f"no prompt of {tokens} tokens was logged")
