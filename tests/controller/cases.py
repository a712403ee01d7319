"""What the tests of single cases share."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.protocol.messages import (
    AnyReport,
    ChunkDone,
    DecodeEnded,
    Drained,
    Failed,
    FirstToken,
    LogprobPart,
    OutputState,
    PromptLogprobs,
    Ready,
    Released,
    Retracted,
    StockEnded,
    WriteLost,
)
from tests.controller.fake_pool import Chunks, FakePool

ROOM = 7
TWO_CHUNKS: Chunks = [(64, [0]), (36, [0, 1])]


def empty(pool: FakePool) -> bool:
    """Whether nothing of any request is left."""
    free = pool.ledger.free_tokens() == (pool.capacity,) * len(pool.instances)
    return free and pool.lifecycle.requests == () and not any(i.used for i in pool.instances)


def with_pages(
    pool: FakePool, plan: Chunks, *, bound: bool = True, room: int = ROOM
) -> PoolRequest:
    """A request whose decode pages are known."""
    request = pool.submit(sum(tokens for tokens, _ in plan), room=room, plan=plan)
    for rank in range(pool.tp_size):
        pool.decode_sends(room, rank)
    if bound:
        pool.lifecycle.on_loop()
    return request


def phase_is(request: PoolRequest, phase: Phase) -> bool:
    """Whether a request has come that far."""
    return request.phase is phase


def every_report(seq: int, chunk: int = 0, instance: int = 0) -> list[AnyReport]:
    """One report of each kind that concerns a task."""
    who: dict[str, Any] = {"instance": instance, "tp_rank": 0, "at_s": 2.0}
    part = LogprobPart(seq, [1], [-0.5], [], [], [], [])
    return [
        Ready(**who, seq=seq, chunk=chunk),
        ChunkDone(**who, seq=seq, chunk=chunk, start_s=1.0),
        FirstToken(**who, seq=seq),
        PromptLogprobs(**who, part=part),
        Failed(**who, seq=seq, error="no"),
        WriteLost(**who, seq=seq, error="lost"),
        Drained(**who, seq=seq),
        Released(**who, seq=seq),
        StockEnded(**who, seq=seq, start_s=None, end_s=None, error=""),
        DecodeEnded(**who, seq=seq),
        Retracted(**who, seq=seq, output=OutputState(tokens=[7], sent=1)),
    ]
