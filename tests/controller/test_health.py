"""A pool that works is told from one that is stuck by its ranks' next layers."""

from __future__ import annotations

from sglang_cdsp.controller.health import STUCK_AFTER_S, PoolHealth
from sglang_cdsp.controller.phases import Phase
from tests.controller.cases import TWO_CHUNKS, with_pages
from tests.controller.fake_pool import FakePool


class Ranks:
    """Two instances of two ranks."""

    def __init__(self) -> None:
        self.counters = [0, 0, 0, 0]
        self.now_s = 100.0
        self.health = PoolHealth(lambda: tuple(self.counters), 2, lambda: self.now_s)

    def pass_time(self, seconds: float, *, busy: set[int], working: set[int]) -> None:
        """Let time pass in which the ranks of ``working`` come to further layers."""
        for _ in range(10):
            self.now_s += seconds / 10
            for rank in working:
                self.counters[rank] += 1
            self.health.observe(busy)


def test_a_rank_that_comes_to_no_layer_makes_its_instance_stuck() -> None:
    ranks = Ranks()
    ranks.pass_time(10 * STUCK_AFTER_S, busy={0, 1}, working={0, 1, 2, 3})
    assert ranks.health.stuck == ()
    ranks.pass_time(0.5 * STUCK_AFTER_S, busy={0, 1}, working={0, 1, 2})
    assert ranks.health.stuck == (), "one layer may take long"
    ranks.pass_time(STUCK_AFTER_S, busy={0, 1}, working={0, 1, 2})
    assert list(ranks.health.stuck) == [1]
    ranks.pass_time(1.0, busy={0, 1}, working={0, 1, 2, 3})
    assert ranks.health.stuck == ()


def test_who_has_nothing_to_do_is_not_stuck() -> None:
    ranks = Ranks()
    ranks.pass_time(10 * STUCK_AFTER_S, busy=set(), working=set())
    assert ranks.health.stuck == ()
    ranks.pass_time(0.5 * STUCK_AFTER_S, busy={0}, working=set())
    assert ranks.health.stuck == (), "its time counts from when it got work"


def test_who_is_busy(pool: FakePool) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    assert pool.lifecycle.busy_instances == frozenset(), "no chunk runs yet"
    pool.until(lambda: request.phase is Phase.RUNNING)
    assert pool.lifecycle.busy_instances == {0}
    pool.until(lambda: request.phase is Phase.RUNNING and request.next_chunk == 1)
    assert pool.lifecycle.busy_instances == {0, 1}
    pool.settle()
    with_pages(pool, [(10, [2])])
    assert pool.lifecycle.busy_instances == {2}
    pool.settle()
    assert pool.lifecycle.busy_instances == frozenset()
