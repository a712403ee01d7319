"""The plan log of a real pool, read: one JSON line per ended request (`--cdsp-plan-log`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang_cdsp.planner.latency import MOST_INSTANCES
from sglang_cdsp.planner.types import Placement
from sglang_cdsp.simulator.errors import SimulationError
from sglang_cdsp.simulator.types import Request


class PlanLogError(SimulationError):
    """The plan log cannot be read; names the file, the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A finished request of the log. Arrivals count from the run's first.

    bound_s: when it got its plan, on the same clock. ttft_s: as the server measured it.
    chunk_s: how long each chunk took, without the time for which it stood while others passed.
    passes: it ran between the layers of others. Logs of servers without passing do not say it.
    """

    request: Request
    policy: str
    bound_s: float
    chunks: Placement
    ttft_s: float
    chunk_s: tuple[float, ...]
    passes: bool = False


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The log's requests as the server wrote them, in the order in which they ended.

    Lines of another ``kind`` are left out.

    Raises:
        PlanLogError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PlanLogError(
            f"{path}: {error.strerror or error}; give what --cdsp-plan-log wrote"
        ) from error
    except UnicodeDecodeError as error:
        raise PlanLogError(f"{path}: not UTF-8 text; give what --cdsp-plan-log wrote") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(path, number, error) from error
        if not isinstance(record, dict):
            raise _bad_line(path, number, TypeError("not an object"))
        if "kind" not in record:
            found.append(record)
    return found


def read_plan_log(path: Path) -> tuple[Recorded, ...]:
    """The finished requests of a plan log, by arrival; forced plans count like any other.

    Raises:
        PlanLogError: a line is not the server's, or nothing finished.
    """
    found: list[Recorded] = []
    for number, record in enumerate(read_lines(path), 1):
        try:
            if record["outcome"] == "finished" and record["ttft_s"]["measured"] is not None:
                found.append(_recorded(record))
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise _bad_line(path, number, error) from error
    if not found:
        raise PlanLogError(f"{path}: no request finished; record a run with --cdsp-plan-log")
    first_s = min(r.request.arrival_s for r in found)
    ordered = sorted(found, key=lambda r: r.request.arrival_s)
    return tuple(
        replace(
            r,
            request=replace(r.request, arrival_s=r.request.arrival_s - first_s),
            bound_s=r.bound_s - first_s,
        )
        for r in ordered
    )


def instances_named(recorded: Iterable[Recorded]) -> int:
    """The least pool that has every instance that the plans name."""
    return 1 + max(i for r in recorded for _, group in r.chunks for i in group)


def _recorded(record: dict[str, Any]) -> Recorded:
    arrival_s = float(record["arrival_s"])
    chunks = record["chunks"]
    recorded = Recorded(
        Request(str(record["rid"]), arrival_s, int(record["prompt_tokens"]), 1),
        str(record["policy"]),
        arrival_s + float(record["bound_s"]),
        tuple((int(c["tokens"]), tuple(map(int, c["instances"]))) for c in chunks),
        float(record["ttft_s"]["measured"]),
        tuple(map(_own_s, chunks)),
        bool(record.get("passes", False)),
    )
    times = (recorded.ttft_s, *recorded.chunk_s)
    if not all(0 < seconds < math.inf for seconds in times) or not math.isfinite(recorded.bound_s):
        raise ValueError("a time is not above 0")
    if recorded.request.prompt_tokens != sum(tokens for tokens, _ in recorded.chunks):
        raise ValueError("the chunks are not the prompt")
    if recorded.passes and len(recorded.chunks) > 1:
        raise ValueError("passes with several chunks")
    for tokens, group in recorded.chunks:
        if tokens < 1 or not group or len(set(group)) < len(group):
            raise ValueError("a chunk without tokens, or whose instances are not a group")
        if not all(0 <= i < MOST_INSTANCES for i in group):
            raise ValueError(f"no pool has the instances {group}")
    return recorded


def _own_s(chunk: dict[str, Any]) -> float:
    return float(chunk["end_s"]) - float(chunk["start_s"]) - float(chunk.get("passed_s", 0.0))


def _bad_line(path: Path, number: int, error: Exception) -> PlanLogError:
    return PlanLogError(f"{path}: line {number}: not a line of --cdsp-plan-log: {error!r}")
