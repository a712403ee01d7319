"""Plan logs as a server writes them, with seats and changes of plans."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STARTED_S, UNIX_S = 7000.0, 1_700_000_000.0
"""The server's clocks when the run began."""


def request(
    rid: str,
    arrival_s: float,
    *chunks: tuple[int, Sequence[int], float | None, float | None],
    ttft_s: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A request's line; a chunk is tokens, instances, start and end after the arrival."""
    return {
        "rid": rid,
        "prompt_tokens": sum(chunk[0] for chunk in chunks),
        "policy": "cdsp-late",
        "arrival_s": STARTED_S + arrival_s,
        "arrival_unix_s": UNIX_S + arrival_s,
        "bound_s": 0.0,
        "passes": False,
        "ttft_s": {"predicted": 1.0, "measured": ttft_s},
        "kv_drained_s": ttft_s,
        "chunks": [
            {
                "tokens": tokens,
                "instances": list(group),
                "planned_start_s": 0.0,
                "planned_end_s": 1.0,
                "start_s": start,
                "end_s": end,
                "passed_s": 0.0,
            }
            for tokens, group, start, end in chunks
        ],
        "recalls": 0,
        "lost_instances": [],
        "replans": [],
        "outcome": "finished",
        "error": "",
        **more,
    }


def seat(at_s: float, number: int, state: str, why: str = "", life: int = 1) -> dict[str, Any]:
    """A seat's line."""
    return {
        "kind": "seat",
        "at_s": STARTED_S + at_s,
        "at_unix_s": UNIX_S + at_s,
        "seat": number,
        "incarnation": life,
        "state": state,
        "why": why,
    }


def replan(at_s: float, before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> Any:
    """A change of a plan; chunks as tokens and SP size."""

    def rest(chunks: Sequence[tuple[int, int]]) -> dict[str, Any]:
        return {"chunks": [[tokens, list(range(size))] for tokens, size in chunks], "ttft_s": 1.0}

    return {
        "at_s": at_s,
        "chunk": 1,
        "reason": "0.310 s sooner",
        "from": rest(before),
        "to": rest(after),
    }


def widening() -> dict[str, Any]:
    """A prompt that takes a second instance half-way, after a change of its plan."""
    chunks = ((600, [0], 0.0, 2.0), (900, [0, 1], 2.0, 4.0))
    changes = [replan(2.0, [(900, 1)], [(900, 2)])]
    return request("wide", 0.0, *chunks, ttft_s=4.0, replans=changes)


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path
