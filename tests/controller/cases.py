"""What the tests of single cases share."""

from __future__ import annotations

from sglang_cdsp.controller.request import Phase, PoolRequest
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
        pool.lifecycle.plan()
    return request


def phase_is(request: PoolRequest, phase: Phase) -> bool:
    """Whether a request has come that far."""
    return request.phase is phase
