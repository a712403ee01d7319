"""A request that has ended, as the observers are told of it."""

from __future__ import annotations

from sglang_cdsp.controller.request import ChunkTimes, PoolRequest
from sglang_cdsp.planner.types import Plan, PlannedChunk
from tests.controller.fake_tasks import Client


def finished() -> PoolRequest:
    """Arrived at 100 s, bound at 101 s, first token at 104.5 s."""
    chunks = (PlannedChunk(64, (1,), 0.5, 1.0), PlannedChunk(36, (1, 0), 1.0, 3.0))
    request = PoolRequest(
        "r1", Client(1), 100, 100.0, bound_s=101.0, plan=Plan(chunks, 3.0, "cdsp")
    )
    request.policy = "cdsp"
    request.times = [ChunkTimes(101.5, 102.25), ChunkTimes(102.5, 104.0)]
    request.next_chunk = len(chunks)
    request.first_token_s, request.drained_s = 104.5, 104.75
    return request
