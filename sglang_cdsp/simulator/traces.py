"""Recorded traces as requests. The format is told from the first line, not from the file's name.

| format | lines | times |
|---|---|---|
| Mooncake | JSON objects: `timestamp`, `input_length`, `output_length`, `hash_ids` | ms |
| own | JSON objects: `arrival_s`, `prompt_tokens`, `output_tokens`; may have `rid`, `blocks` | s |
| Azure | CSV: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens` | date and time |
| ServeGen | CSV: `timestamp_s`, `input_tokens`, `output_tokens` | s |

`hash_ids` and `blocks` are `Request.blocks`, and may be missing. Other fields and columns are
ignored. Requests come back in order of arrival, the first at 0 s. An output of 0 tokens counts as
1: prefill samples one in any case.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sglang_cdsp.simulator.types import Request

MOST_TOKENS = 1 << 40
"""Of a prompt or an answer: more is a slip, and products would leave 64 bits."""


class TraceError(ValueError):
    """A trace cannot be read; names the file, the line and what is wrong with it."""


def _date_s(value: Any) -> float:
    """Seconds since 1970; Azure writes 7 digits of a second, of which Python 3.10 takes 6."""
    moment, _, fraction = str(value).partition(".")
    seconds = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc).timestamp()
    return seconds + float(f"0.{fraction or 0}")


@dataclass(frozen=True)
class Format:
    """A trace format: which fields hold what, and how a time is read into seconds."""

    time: str
    prompt: str
    output: str
    seconds: Callable[[Any], float]
    blocks: str = ""

    @property
    def fields(self) -> tuple[str, str, str]:
        return self.time, self.prompt, self.output

    def request(self, row: Mapping[str, Any], index: int) -> Request:
        """One line's request; ValueError names the field that is wrong."""
        for name in self.fields:
            if row.get(name) is None:
                raise ValueError(f"{name} is missing")
        try:
            arrival = self.seconds(row[self.time])
        except (TypeError, ValueError, OverflowError):
            arrival = math.nan
        if not math.isfinite(arrival):
            raise ValueError(f"{self.time} is {row[self.time]!r}, not a time")
        prompt = _count(row, self.prompt, 1)
        output = max(1, _count(row, self.output, 0))
        blocks = _blocks(row.get(self.blocks)) if self.blocks else ()
        return Request(str(row.get("rid", index)), arrival, prompt, output, blocks)


MOONCAKE = Format(
    "timestamp", "input_length", "output_length", lambda value: float(value) / 1000, "hash_ids"
)
OWN = Format("arrival_s", "prompt_tokens", "output_tokens", float, "blocks")
AZURE = Format("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date_s)
SERVEGEN = Format("timestamp_s", "input_tokens", "output_tokens", float)


def read_trace(path: Path) -> tuple[Request, ...]:
    """All requests of a trace file.

    Raises:
        TraceError: no such file, no known format, a line that is not in it, or no request.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise TraceError(f"{path}: {reason}; give a trace file") from None
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not numbered:
        raise TraceError(f"{path}: it is empty; give a trace file")
    requests: dict[str, Request] = {}
    with _at(path, numbered[0][0]):
        form, parse, skipped = _reader(numbered[0][1])
    for number, line in numbered[skipped:]:
        with _at(path, number):
            request = form.request(parse(line), len(requests))
            if request.rid in requests:
                raise ValueError(f"rid {request.rid!r} appears twice")
            requests[request.rid] = request
    if not requests:
        raise TraceError(f"{path}: no request in it; give a trace file")
    start = min(r.arrival_s for r in requests.values())
    moved = (replace(r, arrival_s=r.arrival_s - start) for r in requests.values())
    return tuple(sorted(moved, key=lambda r: r.arrival_s))


@contextmanager
def _at(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise TraceError(f"{path}, line {line}: {error}") from None


def _reader(first: str) -> tuple[Format, Callable[[str], Mapping[str, Any]], int]:
    """The format, what parses a line of it, and how many lines to skip: CSV has a header."""
    if first.lstrip().startswith("{"):
        return _format(_json_object(first)), _json_object, 0
    header = _cells(first)
    return _format(header), lambda line: dict(zip(header, _cells(line), strict=False)), 1


def _json_object(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]


def _format(names: Iterable[str]) -> Format:
    known, present = (MOONCAKE, OWN, AZURE, SERVEGEN), set(names)
    for form in known:
        if set(form.fields) <= present:
            return form
    expected = "; ".join(", ".join(form.fields) for form in known)
    raise ValueError(f"no known trace format; its fields must hold one of: {expected}")


def _count(row: Mapping[str, Any], name: str, least: int) -> int:
    value = row[name]
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        count = least - 1
    fits = least <= count <= MOST_TOKENS
    if not fits or float(value) != count or isinstance(value, bool):
        raise ValueError(f"{name} is {repr(value)[:40]}, not an integer from {least} to 2^40")
    return count


def _blocks(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(name, int) and not isinstance(name, bool) for name in value
    ):
        raise ValueError("blocks are not a list of integers")
    return tuple(value)
