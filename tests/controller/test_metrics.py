"""Counters fed from the effects, and the observers that are told of them."""

from __future__ import annotations

import json

from sglang_cdsp.controller.metrics import LAST_REPLANS, PoolMetrics
from sglang_cdsp.controller.request import PoolRequest, Replan
from sglang_cdsp.planner.types import Plan, PlannedChunk


def planned(*sizes: int, probe: bool = False) -> PoolRequest:
    """A request with a chunk of ten tokens for each SP size."""
    chunks = tuple(PlannedChunk(10, tuple(range(size)), 0.0, 1.0) for size in sizes)
    request = PoolRequest("r", None if probe else object(), 10 * len(sizes), 0.0)
    request.plan = Plan(chunks, 1.0, "test")
    return request


def run(metrics: PoolMetrics, request: PoolRequest) -> None:
    """What the dispatcher tells of a request that runs all its chunks."""
    assert request.plan is not None
    metrics.bound(request)
    for chunk in range(len(request.plan.chunks)):
        request.next_chunk = chunk
        metrics.chunk_started(request)
    metrics.ended(request)


def test_what_is_counted() -> None:
    metrics = PoolMetrics()
    run(metrics, planned(1, 2, 2))
    run(metrics, planned(1))
    failed = planned(4)
    failed.error = "no"
    metrics.ended(failed)
    metrics.stopped(failed)
    snapshot = metrics.snapshot()
    assert snapshot == {
        "requests_planned": 2,
        "prompt_tokens_planned": 40,
        "chunks_by_sp_size": {"1": 2, "2": 2},
        "requests_ended": {"failed": 1, "finished": 2},
        "tasks_stopped": 1,
        "requests_lost": 0,
        "plans_recalled": 0,
        "requests_resumed": 0,
        "deaths": {},
        "rests_replanned": 0,
        "requests_moved": 0,
        "longest_move_s": 0.0,
        "roles_changed": 0,
        "last_replans": [],
    }
    assert json.loads(json.dumps(snapshot)) == snapshot


def test_the_last_changes_of_plans_are_shown() -> None:
    metrics = PoolMetrics()
    request = planned(1, 2)
    assert request.plan is not None
    rest = request.plan.chunks[1:]
    for number in range(LAST_REPLANS + 1):
        change = Replan(number + 0.5, 1, "told to", rest, rest, (2.0, 1.0))
        request.replans.append(change)
        metrics.replanned(request)
    snapshot = metrics.snapshot()
    assert snapshot["rests_replanned"] == LAST_REPLANS + 1
    shown = snapshot["last_replans"]
    assert [change["at_s"] for change in shown] == [n + 1.5 for n in range(LAST_REPLANS)]
    assert shown[0] == {
        "rid": "r",
        "at_s": 1.5,
        "chunk": 1,
        "reason": "told to",
        "from": {"chunks": [[10, [0, 1]]], "ttft_s": 2.0},
        "to": {"chunks": [[10, [0, 1]]], "ttft_s": 1.0},
    }
    assert json.loads(json.dumps(snapshot)) == snapshot


def test_the_pools_own_measurements_are_not_counted() -> None:
    metrics = PoolMetrics()
    run(metrics, planned(1, 2, probe=True))
    assert metrics.snapshot() == PoolMetrics().snapshot()


def test_a_request_counts_once_however_often_its_plan_is_recalled() -> None:
    metrics = PoolMetrics()
    request = planned(1, 2)
    metrics.bound(request)
    metrics.stopped(request)
    metrics.recalled(request)
    plan = request.plan
    request.forget_plan()
    request.plan = plan
    run(metrics, request)
    snapshot = metrics.snapshot()
    assert snapshot["requests_planned"] == 1
    assert snapshot["prompt_tokens_planned"] == 20
    assert snapshot["plans_recalled"] == 1
    assert snapshot["requests_lost"] == 0


def test_what_ends_with_an_instance_is_counted() -> None:
    metrics = PoolMetrics()
    metrics.lost(planned(1))
    metrics.lost(planned(1, probe=True))
    assert metrics.snapshot()["requests_lost"] == 1
