"""The plan log: one JSON line per ended request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_cdsp.pool.entry import Entry


def record(entry: Entry) -> dict[str, Any]:
    """What is logged of a request.

    Times are seconds after its arrival, which is on the controller's monotonic clock; None for
    what never came. ``bound_s`` is when the policy gave it its plan.
    """
    chunks: list[dict[str, Any]] = []
    offset = entry.bound_s - entry.arrival_s
    for index, chunk in enumerate(entry.plan.chunks if entry.plan else ()):
        times = entry.times[index] if index < len(entry.times) else None
        chunks.append(
            {
                "tokens": chunk.tokens,
                "instances": list(chunk.instances),
                "planned_start_s": offset + chunk.start_s,
                "planned_end_s": offset + chunk.end_s,
                "start_s": _since(times.start_s if times else None, entry.arrival_s),
                "end_s": _since(times.end_s if times else None, entry.arrival_s),
            }
        )
    predicted = offset + entry.plan.ttft_s if entry.plan else None
    return {
        "rid": entry.rid,
        "prompt_tokens": entry.tokens,
        "policy": entry.policy,
        "arrival_s": entry.arrival_s,
        "bound_s": entry.bound_s - entry.arrival_s if entry.plan else None,
        "ttft_s": {
            "predicted": predicted,
            "measured": _since(entry.first_token_s, entry.arrival_s),
        },
        "chunks": chunks,
        "outcome": entry.outcome,
        "error": entry.error,
    }


def _since(at_s: float | None, arrival_s: float) -> float | None:
    return None if at_s is None else at_s - arrival_s


class PlanLog:
    """Appends records to a file, one line each, readable at once."""

    def __init__(self, path: str | None) -> None:
        """``path`` None logs nothing; the file's folder is created."""
        self._path = Path(path) if path is not None else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()

    def write(self, entry: Entry) -> None:
        """Log one ended request; probes are left out."""
        if self._path is not None and not entry.probe:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record(entry)) + "\n")
