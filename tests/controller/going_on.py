"""Requests of one server that go on from what their clients have, for tests."""

from __future__ import annotations

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.cases import empty
from tests.controller.one_server import OneServerPool


def assert_goes_on(pool: OneServerPool, request: PoolRequest, seat: int) -> None:
    """Nobody tells its client of the lost instance; what it may write to is kept till it ended."""
    assert pool.lost_requests == []
    assert pool.answers[request.tokenized] == []
    recalls = request.recalls
    pool.confirm(seat)
    pool.settle()
    assert request.recalls == recalls + 1
    assert pool.answers[request.tokenized][-1].endswith("finished")
    assert len(pool.answers[request.tokenized]) == 1
    assert (request.phase, request.outcome) == (Phase.ENDED, "finished")
    pool.fill(seat)
    assert empty(pool)


def stream(pool: OneServerPool, seat: int, seq: int, tokens: int) -> None:
    """A client gets output of a request."""
    for _ in range(tokens):
        pool.happen(f"{seat} generates a token of {seq}")
    pool.happen(f"{seat} streams {seq}")
    pool.hear_all()


def assert_lost_and_goes_on(pool: OneServerPool, request: PoolRequest, seat: int) -> None:
    pool.lose(seat)
    assert_goes_on(pool, request, seat)
