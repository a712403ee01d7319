"""The plan log of a real pool, read: one JSON line per ended request (`--cdsp-plan-log`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglang_cdsp.planner.latency import MOST_INSTANCES
from sglang_cdsp.planner.stretches import MOST_SHARE
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
    chunk_spans: when each chunk ran, on the clock of the arrivals. end_s: when its last token came,
    on the same clock; None where a decode server had it, or it has only one token. moves: when it
    left an instance after its first token, when it went on at the next, and which that was.
    reused: tokens in front of the first chunk that its home had cached.
    decode_shares: what decode was to get of each chunk's time; empty where the log does not say it.
    """

    request: Request
    policy: str
    bound_s: float
    chunks: Placement
    ttft_s: float
    chunk_s: tuple[float, ...]
    passes: bool = False
    chunk_spans: tuple[tuple[float, float], ...] = ()
    end_s: float | None = None
    moves: tuple[tuple[float, float, int], ...] = ()
    reused: int = 0
    decode_shares: tuple[float, ...] = ()

    @property
    def home(self) -> int:
        """The instance that sampled its first token."""
        return self.chunks[0][1][0]

    @property
    def decode_spans(self) -> tuple[tuple[int, tuple[float, float]], ...]:
        """Where it was decoded from when to when: its home, then where it moved to."""
        at, since_s = self.home, self.decode_span[0]
        found = []
        for left_s, arrived_s, target in self.moves:
            found.append((at, (since_s, left_s)))
            at, since_s = target, arrived_s
        return (*found, (at, (since_s, max(since_s, self.decode_span[1]))))

    @property
    def decode_span(self) -> tuple[float, float]:
        """From its first token to its last one; no time where that is not known."""
        first_s = self.request.arrival_s + self.ttft_s
        return first_s, max(first_s, self.end_s or first_s)

    @property
    def tpot_s(self) -> float | None:
        """The mean time between two of its tokens, seconds; None where that is not known."""
        if self.end_s is None:
            return None
        first_s, last_s = self.decode_span
        return (last_s - first_s) / (self.request.output_tokens - 1)

    def shifted(self, seconds: float) -> Recorded:
        """The same, so much sooner."""
        return replace(
            self,
            request=replace(self.request, arrival_s=self.request.arrival_s - seconds),
            bound_s=self.bound_s - seconds,
            chunk_spans=tuple((start - seconds, end - seconds) for start, end in self.chunk_spans),
            end_s=None if self.end_s is None else self.end_s - seconds,
            moves=tuple((left - seconds, came - seconds, at) for left, came, at in self.moves),
        )


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

    What was computed anew after its first token is left out: the log has only its last plan.

    Raises:
        PlanLogError: a line is not the server's, or nothing finished.
    """
    found: list[Recorded] = []
    for number, record in enumerate(read_lines(path), 1):
        try:
            finished = record["outcome"] == "finished" and record["ttft_s"]["measured"] is not None
            if finished and not record.get("resumed_tokens"):
                found.append(_recorded(record))
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise _bad_line(path, number, error) from error
    if not found:
        raise PlanLogError(f"{path}: no request finished; record a run with --cdsp-plan-log")
    first_s = min(r.request.arrival_s for r in found)
    ordered = sorted(found, key=lambda r: r.request.arrival_s)
    return tuple(r.shifted(first_s) for r in ordered)


def instances_named(recorded: Iterable[Recorded]) -> int:
    """The least pool that has every instance that the plans name."""
    return 1 + max(
        i
        for r in recorded
        for group in (*(group for _, group in r.chunks), tuple(at for _, _, at in r.moves))
        for i in group
    )


def _recorded(record: dict[str, Any]) -> Recorded:
    arrival_s = float(record["arrival_s"])
    chunks = record["chunks"]
    # Of a pool before decode servers, and of one that has not told, the first token is the last.
    output_tokens = max(1, int(record.get("output_tokens") or 1))
    recorded = Recorded(
        Request(str(record["rid"]), arrival_s, int(record["prompt_tokens"]), output_tokens),
        str(record["policy"]),
        arrival_s + float(record["bound_s"]),
        tuple((int(c["tokens"]), tuple(map(int, c["instances"]))) for c in chunks),
        float(record["ttft_s"]["measured"]),
        tuple(map(_own_s, chunks)),
        bool(record.get("passes", False)),
        tuple((arrival_s + float(c["start_s"]), arrival_s + float(c["end_s"])) for c in chunks),
        arrival_s + float(record["end_s"]) if output_tokens > 1 else None,
        tuple(
            (
                arrival_s + float(move["left_s"]),
                arrival_s + float(move["arrived_s"]),
                int(move["to"]),
            )
            for move in record.get("moves", ())
        ),
        int((record.get("prefix") or {}).get("reused_tokens", 0)),
        tuple(float(c["decode_share"]) for c in chunks if "decode_share" in c),
    )
    times = (recorded.ttft_s, *recorded.chunk_s)
    if not all(0 < seconds < math.inf for seconds in times) or not math.isfinite(recorded.bound_s):
        raise ValueError("a time is not above 0")
    if len(recorded.decode_shares) not in (0, len(chunks)):
        raise ValueError("some chunks have a decode share, and some have none")
    if not all(0 <= share <= MOST_SHARE for share in recorded.decode_shares):
        raise ValueError(f"a decode share is not from 0 to {MOST_SHARE}")
    computed = sum(tokens for tokens, _ in recorded.chunks)
    if recorded.request.prompt_tokens != recorded.reused + computed or recorded.reused < 0:
        raise ValueError("the chunks are not the prompt")
    if recorded.passes and len(recorded.chunks) > 1:
        raise ValueError("passes with several chunks")
    if not all(0 <= at < MOST_INSTANCES for _, _, at in recorded.moves):
        raise ValueError("no pool has an instance to which it moved")
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
