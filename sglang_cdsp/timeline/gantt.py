"""A run as text: a line an instance, what happened to plans and seats, and a line a request.

It looks as ``python -m sglang_cdsp plan`` does, with a mark for each request in place of one for
each chunk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from sglang_cdsp.timeline.types import Request, Run, absences

MARKS = "123456789abcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWYZ"
"""Requests in the order of their arrival; then they begin again."""

IDLE, GONE = ".", "x"
SHOWN = 40
"""Requests in the table, and lines on plans and seats; the rest are counted."""
LONGEST_RID = 24
LONGEST_WORDS = 90


def text(run: Run, start_s: float, end_s: float, width: int) -> str:
    """The run between two times, in blocks.

    Args:
        width: characters of an instance's line.
    """
    part = run.between(start_s, end_s)
    marks = marks_of(part.requests)
    blocks = [_head(part, start_s, end_s), _chart(part, marks, start_s, end_s, width)]
    events = [(at_s, words) for at_s, words in happenings(part, marks) if start_s <= at_s <= end_s]
    if events:
        lines = [f"{at_s:>8.3f} s  {words}" for at_s, words in events[:SHOWN]]
        blocks.append("\n".join([*lines, *_more(events)]))
    blocks.append(_table(part.requests, marks))
    return "\n\n".join(blocks)


def marks_of(requests: Sequence[Request]) -> dict[str, str]:
    """A mark for each request of which something ran, by ``key_of``."""
    ran = [r for r in requests if r.waited_s is not None]
    return {key_of(r): MARKS[n % len(MARKS)] for n, r in enumerate(ran)}


def key_of(request: Request) -> str:
    """What tells a request from others: clients may use an id again."""
    return f"{request.arrival_s:.9f} {request.rid}"


def happenings(run: Run, marks: Mapping[str, str]) -> list[tuple[float, str]]:
    """What happened to plans and seats, in order: when, and in words."""
    found: list[tuple[float, str]] = []
    for r in run.requests:
        mark = marks.get(key_of(r), "")
        name = f"{mark} ({_cut(r.rid, LONGEST_RID)})" if mark else _cut(r.rid, LONGEST_RID)
        for change in r.changes:
            before, after = _sizes(change.before), _sizes(change.after)
            words = f"{name} is planned anew from chunk {change.chunk + 1}: {before} -> {after}"
            found.append((change.at_s, f"{words}; {change.reason}"))
        if r.lost:
            lost = ", ".join(map(str, r.lost))
            found.append((r.end_s, f"{name} {r.outcome}: its plan named {lost}, lost meanwhile"))
    for seat in run.seats:
        why = f": {_cut(seat.why, LONGEST_WORDS)}" if seat.why else ""
        words = f"instance {seat.seat} is {seat.state} (life {seat.incarnation}){why}"
        found.append((seat.at_s, words))
    return sorted(found)


def _head(run: Run, start_s: float, end_s: float) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.unix_s + start_s))
    policies = sorted({r.policy for r in run.requests if r.policy})
    ends = {
        word: sum(r.outcome == word for r in run.requests)
        for word in ("finished", "aborted", "failed")
    }
    told = ", ".join(f"{count} {word}" for word, count in ends.items() if count) or "none"
    return (
        f"{end_s - start_s:.3f} s from {when}; {run.instances} instances; "
        f"policy {', '.join(policies) or '-'}; requests: {told}"
    )


# -- the chart ----------------------------------------------------------------------------


def _chart(run: Run, marks: Mapping[str, str], start_s: float, end_s: float, width: int) -> str:
    head = f"{start_s:.3f} s{f'{end_s:.3f} s':>{max(width - len(f'{start_s:.3f} s'), 1)}}"
    lines = [f"instance  {head}   {IDLE} idle, {GONE} absent"]
    cell_s = (end_s - start_s) / width or 1.0
    for instance in range(run.instances):
        lines.append(f"{instance:>8}  {_bar(run, marks, instance, start_s, cell_s, width)}")
    flags = _flags(run, start_s, cell_s, width)
    if flags.strip():
        lines.append(f"{'':>8}  {flags.rstrip()}   ^ planned anew, ! lost, + up")
    return "\n".join(lines)


def _bar(
    run: Run, marks: Mapping[str, str], instance: int, start_s: float, cell_s: float, width: int
) -> str:
    """Each cell has the mark of what ran longest in it; what passes goes before what it passes."""
    best: list[tuple[bool, float, str]] = [(False, 0.0, IDLE)] * width
    for gone_s, back_s in absences(run, instance, start_s + cell_s * width):
        for column, seconds in _cells(gone_s - start_s, back_s - start_s, cell_s, width):
            best[column] = max(best[column], (False, seconds, GONE))
    for request in run.requests:
        mark = marks.get(key_of(request), "")
        for chunk in request.chunks:
            if chunk.start_s is None or chunk.end_s is None or instance not in chunk.instances:
                continue
            first_s, last_s = chunk.start_s - start_s, chunk.end_s - start_s
            for column, seconds in _cells(first_s, last_s, cell_s, width):
                passes = request.passes and seconds >= cell_s / 2
                best[column] = max(best[column], (passes, seconds, mark))
    return "".join(mark for _, _, mark in best)


def _cells(first_s: float, last_s: float, cell_s: float, width: int) -> Iterator[tuple[int, float]]:
    """The cells between two times, and for how many seconds each is covered."""
    first, last = int(max(first_s, 0.0) / cell_s), int(max(last_s, 0.0) / cell_s)
    for column in range(first, min(last, width - 1) + 1):
        covered = min(last_s, (column + 1) * cell_s) - max(first_s, column * cell_s)
        if covered > 0.0:
            yield column, covered


def _flags(run: Run, start_s: float, cell_s: float, width: int) -> str:
    moments = [(change.at_s, "^") for request in run.requests for change in request.changes]
    moments += [(c.at_s, "!") for c in run.seats if c.state == "ending"]
    moments += [(c.at_s, "+") for c in run.seats if c.state == "up"]
    cells = [" "] * width
    for at_s, flag in sorted(moments):
        column = int((at_s - start_s) / cell_s)
        if at_s - start_s >= 0 and column <= width:
            cells[min(column, width - 1)] = flag
    return "".join(cells)


# -- the table ----------------------------------------------------------------------------


def _table(requests: Sequence[Request], marks: Mapping[str, str]) -> str:
    rids = [_cut(r.rid, LONGEST_RID) for r in requests[:SHOWN]]
    wide = max([*map(len, rids), len("request")])
    head = f"{'arrival':>8}{'tokens':>9}{'waited':>9}{'TTFT':>9}{'planned':>9}"
    lines = [f"   {'request':<{wide}}{head}  plan as tokens@SP, times in s"]
    for rid, r in zip(rids, requests, strict=False):
        planned = r.planned_s - r.arrival_s if r.planned_s is not None else None
        numbers = f"{r.arrival_s:>8.3f}{r.tokens:>9}"
        numbers += "".join(_seconds(value) for value in (r.waited_s, r.ttft_s, planned))
        words = " ".join([_plan(r), *(["passed others"] if r.passes else [])])
        if r.outcome != "finished":
            words = f"{words} {r.outcome}: {_cut(r.error, LONGEST_WORDS)}".strip()
        lines.append(f"{marks.get(key_of(r), ''):>2} {rid:<{wide}}{numbers}  {words}".rstrip())
    return "\n".join([*lines, *_more(requests)])


def _plan(request: Request) -> str:
    return _sizes([(chunk.tokens, chunk.sp_size) for chunk in request.chunks])


def _sizes(chunks: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{tokens}@{size}" for tokens, size in chunks)


def _more(things: Sequence[object]) -> list[str]:
    more = len(things) - SHOWN
    return [f"{'':>8}    and {more} more; --trace has them all"] if more > 0 else []


def _seconds(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.3f}"


def _cut(words: str, longest: int) -> str:
    """One line of printable characters, and not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line if len(line) <= longest else f"{line[: longest - 2]}.."
