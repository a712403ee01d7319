"""A run as Chrome trace events, for https://ui.perfetto.dev and chrome://tracing.

The format: "Trace Event Format", Google, 2016. Times are microseconds since the run's start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang_cdsp.timeline.types import Chunk, Request, Run, absences

MICROSECONDS = 1e6
INSTANCES, REQUESTS, LOAD = 1, 2, 3
"""Processes of the trace. Perfetto takes number 0, of a process or a thread, for the idle one."""
ABREAST = 1000
"""Chunks beside another on one instance have tracks of their own, so many at most."""


def trace(run: Run) -> dict[str, Any]:
    """The whole file, JSON-ready."""
    events = [*_names(), *_instances(run), *_requests(run), *_load(run)]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"unix_s_at_zero": run.unix_s, "instances": run.instances},
    }


def _names() -> Iterator[dict[str, Any]]:
    names = ((INSTANCES, "instances"), (REQUESTS, "requests"), (LOAD, "load"))
    for pid, name in names:
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}


def _named(tid: int, name: str) -> Iterator[dict[str, Any]]:
    track = {"ph": "M", "pid": INSTANCES, "tid": tid}
    yield {**track, "name": "thread_name", "args": {"name": name}}
    yield {**track, "name": "thread_sort_index", "args": {"sort_index": tid}}


def track(instance: int, lane: int = 0) -> int:
    """The thread that stands for an instance, or for what runs there beside others."""
    return (instance + 1) * ABREAST + lane


def _instances(run: Run) -> Iterator[dict[str, Any]]:
    """Chunks, absences and changes of the seats, on the tracks of their instances."""
    for instance in range(run.instances):
        yield from _named(track(instance), f"instance {instance}")
        ends: list[float] = []
        for request, index, chunk in _chunks_on(run, instance):
            assert chunk.start_s is not None
            assert chunk.end_s is not None
            # What passes, and batches, run beside others: a track shows one after the other only.
            free = [n for n, end_s in enumerate(ends) if end_s <= chunk.start_s]
            lane = free[0] if free else len(ends)
            if lane == len(ends):
                ends.append(0.0)
                if lane:
                    yield from _named(
                        track(instance, lane), f"instance {instance}, beside ({lane})"
                    )
            ends[lane] = chunk.end_s
            yield _chunk_event(request, index, chunk, track(instance, lane))
        for gone_s, back_s in absences(run, instance, run.end_s):
            yield _complete("absent", "seat", track(instance), gone_s, back_s, {})
    for change in run.seats:
        yield {
            "ph": "i",
            "s": "t",
            "pid": INSTANCES,
            "tid": track(change.seat),
            "name": change.state,
            "cat": "seat",
            "ts": change.at_s * MICROSECONDS,
            "args": {"life": change.incarnation, "why": change.why},
        }


def _chunks_on(run: Run, instance: int) -> list[tuple[Request, int, Chunk]]:
    found = [
        (request, index, chunk)
        for request in run.requests
        for index, chunk in enumerate(request.chunks)
        if chunk.start_s is not None and chunk.end_s is not None and instance in chunk.instances
    ]
    return sorted(found, key=lambda item: item[2].start_s or 0.0)


def _chunk_event(request: Request, index: int, chunk: Chunk, tid: int) -> dict[str, Any]:
    assert chunk.start_s is not None
    assert chunk.end_s is not None
    details = {
        "chunk": f"{index + 1} of {len(request.chunks)}",
        "tokens": chunk.tokens,
        "sp_size": chunk.sp_size,
        "instances": list(chunk.instances),
        "planned_s": chunk.planned_s[1] - chunk.planned_s[0],
        "late_s": chunk.start_s - chunk.planned_s[0],
        "stood_s": chunk.passed_s,
        "passes": request.passes,
    }
    return _complete(request.rid, "chunk", tid, chunk.start_s, chunk.end_s, details)


def _complete(
    name: str, category: str, tid: int, start_s: float, end_s: float, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": INSTANCES,
        "tid": tid,
        "name": name,
        "cat": category,
        "ts": start_s * MICROSECONDS,
        "dur": (end_s - start_s) * MICROSECONDS,
        "args": details,
    }


def _requests(run: Run) -> Iterator[dict[str, Any]]:
    """Phases of each request, one after the other, and the changes of its plan."""
    for number, request in enumerate(run.requests):
        common = {"pid": REQUESTS, "tid": 1, "cat": "request", "id": number}
        details = {
            "tokens": request.tokens,
            "policy": request.policy,
            "ttft_s": request.ttft_s,
            "outcome": request.outcome,
            "error": request.error,
        }
        yield {**common, "ph": "b", "name": request.rid, "ts": _us(request.arrival_s)} | {
            "args": details
        }
        for phase, start_s, end_s in _phases(request):
            yield {**common, "ph": "b", "name": phase, "ts": _us(start_s)}
            yield {**common, "ph": "e", "name": phase, "ts": _us(end_s)}
        for change in request.changes:
            said = {
                "chunk": change.chunk + 1,
                "reason": change.reason,
                "from": list(change.before),
                "to": list(change.after),
            }
            moment = {**common, "ph": "n", "name": "planned anew", "ts": _us(change.at_s)}
            yield {**moment, "args": said}
        yield {**common, "ph": "e", "name": request.rid, "ts": _us(request.end_s)}


def _phases(request: Request) -> Iterator[tuple[str, float, float]]:
    starts = [chunk.start_s for chunk in request.chunks if chunk.start_s is not None]
    moments = (
        request.arrival_s,
        request.bound_s,
        min(starts, default=None),
        request.first_token_s,
        request.drained_s,
    )
    names = ("waits for a plan", "waits for its turn", "prefill", "transfer")
    for name, start_s, end_s in zip(names, moments, moments[1:], strict=False):
        if start_s is None or end_s is None:
            return
        yield name, start_s, max(start_s, end_s)


def _load(run: Run) -> Iterator[dict[str, Any]]:
    """How many requests wait and how many run, as counters."""
    steps: list[tuple[float, int, int]] = []
    for request in run.requests:
        waited_s = request.waited_s
        begins_s = request.end_s if waited_s is None else request.arrival_s + waited_s
        steps += [(request.arrival_s, 1, 0), (begins_s, -1, 0)]
        if waited_s is not None:
            token_s = request.first_token_s
            # What is computed anew has its first token before the chunks that are told of.
            ends_s = request.end_s if token_s is None or token_s < begins_s else token_s
            steps += [(begins_s, 0, 1), (ends_s, 0, -1)]
    waiting = running = 0
    for at_s, more_wait, more_run in sorted(steps):
        waiting, running = waiting + more_wait, running + more_run
        yield {
            "ph": "C",
            "pid": LOAD,
            "tid": 1,
            "name": "requests",
            "ts": _us(at_s),
            "args": {"waiting": waiting, "running": running},
        }


def _us(seconds: float) -> float:
    return seconds * MICROSECONDS
