"""Plan logs as a server writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sglang_cdsp.simulator.types import Record

STARTED_S = 5000.0
"""The server's clock when the run began."""


def line(
    rid: str,
    arrival_s: float,
    bound_s: float,
    ttft_s: float | None,
    *chunks: tuple[int, list[int], float, float],
) -> dict[str, Any]:
    """A line of the log; times after the arrival but for the arrival itself."""
    return {
        "rid": rid,
        "prompt_tokens": sum(chunk[0] for chunk in chunks),
        "policy": "cdsp-paper",
        "arrival_s": STARTED_S + arrival_s,
        "bound_s": bound_s,
        "ttft_s": {"predicted": 1.0, "measured": ttft_s},
        "chunks": [
            {"tokens": tokens, "instances": group, "start_s": start, "end_s": end}
            for tokens, group, start, end in chunks
        ],
        "outcome": "finished" if ttft_s is not None else "aborted",
        "error": "",
    }


def lines_of(records: Iterable[Record], *, one_server: bool = False) -> list[dict[str, Any]]:
    """What a server would have logged of simulated requests, in the order of their ends.

    ``one_server``: it decodes itself.
    """
    found = []
    for record in records:
        request, at = record.request, record.request.arrival_s
        assert record.bound_s is not None
        assert record.ttft_s is not None
        chunks = [(c.tokens, [*c.instances], c.start_s - at, c.end_s - at) for c in record.chunks]
        said = line(request.rid, at, record.bound_s - at, record.ttft_s, *chunks)
        said["passes"] = record.passed
        if one_server and record.end_s is not None:
            said["output_tokens"] = request.output_tokens
            said["end_s"] = record.end_s - at
        for chunk, stood_s in zip(said["chunks"], record.stood_s, strict=False):
            chunk["passed_s"] = stood_s
        found.append(said)
    return sorted(found, key=lambda row: row["arrival_s"] + row["ttft_s"]["measured"])


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path
