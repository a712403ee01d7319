"""Reads a run from a plan log, with the files that it was rotated into."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_cdsp.planner.latency import MOST_INSTANCES
from sglang_cdsp.timeline.types import Change, Chunk, Request, Run, SeatChange

ONE_CLOCK_S = 5.0
"""Monotonic clocks that are off by no more than this, against the wall clock, are one and the same:
the wall clock was set meanwhile. Between two starts of a machine they differ by more."""


class TimelineError(ValueError):
    """The log cannot be drawn; names the file, the line and the remedy."""


def files_of(path: Path) -> list[Path]:
    """The log's files, the oldest first: ``PATH.3``, ``PATH.2``, ``PATH.1``, ``PATH``."""
    rotated = [
        (int(number), other)
        for other in path.parent.glob(f"{_plain(path.name)}.*")
        if (number := other.name[len(path.name) + 1 :]).isdecimal()
    ]
    return [*(other for _, other in sorted(rotated, reverse=True)), path]


def _plain(name: str) -> str:
    """A name as a pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def read_run(path: Path) -> Run:
    """Everything that a plan log and its rotated files tell.

    Raises:
        TimelineError: a file cannot be read, a line is not the server's, or nothing is told.
    """
    requests: list[tuple[float, Request]] = []
    seats: list[tuple[float, SeatChange]] = []
    for file in files_of(path):
        for number, record in _records(file):
            try:
                if record.get("kind", "request") == "request":
                    requests.append(_request(record))
                elif record["kind"] == "seat":
                    seats.append(_seat(record))
            except (ValueError, TypeError, LookupError, OverflowError) as error:
                raise _bad_line(file, number, error) from error
    if not requests and not seats:
        raise TimelineError(f"{path}: no request has ended yet; send one, then try again")
    return _on_one_clock(requests, seats)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects. A last line that is still being written is left out."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if not line.endswith("\n") and number > 1:
                        return
                    raise _bad_line(path, number, error) from error
                if not isinstance(record, dict):
                    raise _bad_line(path, number, TypeError("not an object"))
                yield number, record
    except OSError as error:
        why = error.strerror or error
        raise TimelineError(f"{path}: {why}; give what --cdsp-plan-log wrote") from error
    except UnicodeDecodeError as error:
        raise TimelineError(f"{path}: not UTF-8 text; give what --cdsp-plan-log wrote") from error


def _bad_line(path: Path, number: int, error: Exception) -> TimelineError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error) or repr(error)
    return TimelineError(
        f"{path}: line {number} is not of a plan log ({' '.join(what.split())}); "
        "give what --cdsp-plan-log wrote"
    )


# -- lines --------------------------------------------------------------------------------
# Each comes with its monotonic clock's lag behind the wall clock, and in monotonic seconds.


def _request(record: Mapping[str, Any]) -> tuple[float, Request]:
    arrival_s = _number(record["arrival_s"])
    moments = {
        name: _after(arrival_s, record.get(key))
        for name, key in (("bound_s", "bound_s"), ("drained_s", "kv_drained_s"))
    }
    ttft = record["ttft_s"]
    request = Request(
        rid=str(record["rid"]),
        tokens=int(record["prompt_tokens"]),
        policy=str(record.get("policy", "")),
        arrival_s=arrival_s,
        first_token_s=_after(arrival_s, ttft["measured"]),
        planned_s=_after(arrival_s, ttft["predicted"]),
        chunks=tuple(_chunk(chunk, arrival_s) for chunk in record["chunks"]),
        changes=tuple(_change(change, arrival_s) for change in record.get("replans", ())),
        lost=tuple(map(_instance, record.get("lost_instances", ()))),
        passes=bool(record.get("passes", False)),
        outcome=str(record["outcome"]),
        error=str(record.get("error", "")),
        **moments,
    )
    return _number(record.get("arrival_unix_s", arrival_s)) - arrival_s, request


def _chunk(chunk: Mapping[str, Any], arrival_s: float) -> Chunk:
    start_s, end_s = (_after(arrival_s, chunk[key]) for key in ("start_s", "end_s"))
    planned = [_after(arrival_s, chunk.get(f"planned_{key}_s", 0.0)) for key in ("start", "end")]
    group = tuple(map(_instance, chunk["instances"]))
    if not group:
        raise ValueError("a chunk without instances")
    return Chunk(
        tokens=int(chunk["tokens"]),
        instances=group,
        start_s=start_s,
        end_s=end_s,
        planned_s=(planned[0] or 0.0, planned[1] or 0.0),
        passed_s=_number(chunk.get("passed_s", 0.0)),
    )


def _change(change: Mapping[str, Any], arrival_s: float) -> Change:
    def rest(key: str) -> tuple[tuple[int, int], ...]:
        return tuple((int(tokens), len(group)) for tokens, group in change[key]["chunks"])

    return Change(
        arrival_s + _number(change["at_s"]),
        int(change["chunk"]),
        str(change["reason"]),
        rest("from"),
        rest("to"),
    )


def _seat(record: Mapping[str, Any]) -> tuple[float, SeatChange]:
    at_s = _number(record["at_s"])
    change = SeatChange(
        at_s,
        _instance(record["seat"]),
        int(record["incarnation"]),
        str(record["state"]),
        str(record["why"]),
    )
    return _number(record.get("at_unix_s", at_s)) - at_s, change


def _after(arrival_s: float, seconds: Any) -> float | None:
    return None if seconds is None else arrival_s + _number(seconds)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} where a number of seconds should be")
    return float(value)


def _instance(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_INSTANCES:
        raise ValueError(f"no pool has the instance {str(value)[:40]!r}")
    return value


# -- one clock ----------------------------------------------------------------------------


def _on_one_clock(
    requests: list[tuple[float, Request]], seats: list[tuple[float, SeatChange]]
) -> Run:
    """Times from the first moment on: by the monotonic clock, or by the wall clock where the log
    is of several starts of a machine."""
    lags = [lag for lag, _ in (*requests, *seats)]
    lag = lags[0] if max(lags) - min(lags) <= ONE_CLOCK_S else None
    shifted_requests = [_shifted(r, 0.0 if lag is not None else own) for own, r in requests]
    shifted_seats = [
        replace(change, at_s=change.at_s + (0.0 if lag is not None else own))
        for own, change in seats
    ]
    first_s = min(
        [r.arrival_s for r in shifted_requests] + [change.at_s for change in shifted_seats]
    )
    named = [i for r in shifted_requests for chunk in r.chunks for i in chunk.instances]
    named += [change.seat for change in shifted_seats]
    named += [i for r in shifted_requests for i in r.lost]
    return Run(
        requests=tuple(
            sorted(
                (_shifted(r, -first_s) for r in shifted_requests),
                key=lambda r: (r.arrival_s, r.rid),
            )
        ),
        seats=tuple(
            sorted(
                (replace(change, at_s=change.at_s - first_s) for change in shifted_seats),
                key=lambda change: change.at_s,
            )
        ),
        instances=1 + max(named, default=-1),
        unix_s=first_s + (lag or 0.0),
    )


def _shifted(request: Request, seconds: float) -> Request:
    def later(moment: float | None) -> float | None:
        return None if moment is None else moment + seconds

    return replace(
        request,
        arrival_s=request.arrival_s + seconds,
        bound_s=later(request.bound_s),
        first_token_s=later(request.first_token_s),
        drained_s=later(request.drained_s),
        planned_s=later(request.planned_s),
        chunks=tuple(
            replace(
                chunk,
                start_s=later(chunk.start_s),
                end_s=later(chunk.end_s),
                planned_s=(chunk.planned_s[0] + seconds, chunk.planned_s[1] + seconds),
            )
            for chunk in request.chunks
        ),
        changes=tuple(replace(c, at_s=c.at_s + seconds) for c in request.changes),
    )
