"""The plan log: one JSON line per ended request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.request import PoolRequest


def record(request: PoolRequest) -> dict[str, Any]:
    """What is logged of a request.

    Times are seconds after its arrival, which is on the controller's monotonic clock; None for
    what never came. ``bound_s`` is when the policy gave it its plan.
    """
    chunks: list[dict[str, Any]] = []
    offset = request.bound_s - request.arrival_s
    for index, chunk in enumerate(request.plan.chunks if request.plan else ()):
        times = request.times[index] if index < len(request.times) else None
        chunks.append(
            {
                "tokens": chunk.tokens,
                "instances": list(chunk.instances),
                "planned_start_s": offset + chunk.start_s,
                "planned_end_s": offset + chunk.end_s,
                "start_s": _since(times.start_s if times else None, request.arrival_s),
                "end_s": _since(times.end_s if times else None, request.arrival_s),
            }
        )
    predicted = offset + request.plan.ttft_s if request.plan else None
    return {
        "rid": request.rid,
        "prompt_tokens": request.tokens,
        "policy": request.policy,
        "arrival_s": request.arrival_s,
        "bound_s": request.bound_s - request.arrival_s if request.plan else None,
        "ttft_s": {
            "predicted": predicted,
            "measured": _since(request.first_token_s, request.arrival_s),
        },
        "chunks": chunks,
        "outcome": request.outcome,
        "error": request.error,
    }


def _since(at_s: float | None, arrival_s: float) -> float | None:
    return None if at_s is None else at_s - arrival_s


class PlanLog(Observer):
    """Appends records to a file, one line each, readable at once."""

    def __init__(self, path: str | None) -> None:
        """``path`` None logs nothing; the file's folder is created."""
        self._path = Path(path) if path is not None else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()

    def ended(self, request: PoolRequest) -> None:
        """Log one ended request; probes are left out."""
        if self._path is not None and not request.probe:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record(request)) + "\n")
