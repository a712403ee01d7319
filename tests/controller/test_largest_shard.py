"""Prompts whose activations do not fit are run in more chunks, whoever planned them."""

from __future__ import annotations

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.memory import shard_share
from tests.controller.cases import empty, with_pages
from tests.controller.fake_pool import FakePool


def shards(request: PoolRequest, page_size: int) -> list[int]:
    assert request.plan is not None
    return [shard_share(c.tokens, c.sp_size, page_size) for c in request.plan.chunks]


def test_a_million_tokens_pass() -> None:
    """Four instances of an 8B model: KV of 390,000 tokens each, activations of 110,000."""
    pool = FakePool(size=4, page_size=64, capacity=390_000, max_shard_tokens=110_000)
    request = pool.submit(1_000_001)
    pool.settle()
    assert (request.phase, request.outcome) == (Phase.ENDED, "finished")
    assert len(shards(request, 64)) == 3
    assert max(shards(request, 64)) <= 110_000
    assert empty(pool)


def test_plans_of_requests_are_cut_too() -> None:
    pool = FakePool(size=2, capacity=4096, max_shard_tokens=100)
    request = with_pages(pool, [(300, [0]), (200, [0, 1])])
    pool.settle()
    assert request.plan is not None
    assert [c.tokens for c in request.plan.chunks] == [100, 100, 100, 200]
    assert [c.sp_size for c in request.plan.chunks] == [1, 1, 1, 2]
    assert request.outcome == "finished"
    assert empty(pool)


def test_without_a_limit_plans_stay() -> None:
    pool = FakePool(size=2, capacity=4096)
    request = with_pages(pool, [(300, [0]), (200, [0, 1])])
    assert request.plan is not None
    assert [c.tokens for c in request.plan.chunks] == [300, 200]
