"""SGLang's own numbers, with what the engine and the controller hold counted in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from sglang.srt.managers.load_snapshot import LoadSnapshot, QueueMetrics
from sglang.srt.observability.metrics_collector import QueueCount, SchedulerStats

from sglang_cdsp.engine.stock_numbers import PUBLISH_EVERY_S, Load, StockNumbers
from tests.engine.fake_stock import FakeScheduler

NOTHING = Load(0, 0, 0)


class World:
    """A scheduler whose own queues have two running and one waiting request of ten tokens."""

    def __init__(self, *, metrics: bool = True) -> None:
        self.now_s = 100.0
        self.load = NOTHING
        self.logged: list[SchedulerStats] = []
        self.collector = Mock(log_stats=self.logged.append)
        self.stats = SchedulerStats(num_running_reqs=QueueCount(2), num_queue_reqs=QueueCount(1))
        self.snapshots: list[LoadSnapshot] = []
        self.scheduler = FakeScheduler(
            metrics_reporter=SimpleNamespace(
                current_scheduler_metrics_enabled=metrics, stats=self.stats
            ),
            metrics_collector=self.collector,
            load_inquirer=SimpleNamespace(get_loads=stock_loads, max_running_requests=9),
        )
        self.scheduler.publish_load_snapshot = self._publish  # type: ignore[method-assign]
        self.numbers = StockNumbers(self.scheduler, lambda: self.load, lambda: self.now_s)

    def _publish(self, force: bool = False) -> Any:
        assert force, "else SGLang would leave most of them out"
        self.snapshots.append(self.scheduler.load_inquirer.get_loads())


def stock_loads() -> LoadSnapshot:
    return LoadSnapshot(
        num_running_reqs=2,
        num_waiting_reqs=1,
        num_waiting_uncached_tokens=10,
        num_total_tokens=40,
        num_active_tokens=40,
        queues=QueueMetrics(waiting=1, grammar=0, paused=0, retracted=0, prealloc_ready=0),
    )


def test_what_the_engine_and_the_controller_hold_is_counted_in() -> None:
    world = World()
    world.load = Load(running=3, waiting=4, waiting_tokens=500)
    world.numbers.elsewhere = Load(0, 5, 60)
    world.numbers.publish()
    (stats,) = world.logged
    assert (stats.num_running_reqs.total, stats.num_queue_reqs.total) == (5, 10)
    (loads,) = world.snapshots
    assert (loads.num_running_reqs, loads.num_waiting_reqs) == (5, 10)
    assert (loads.num_waiting_uncached_tokens, loads.num_total_tokens) == (570, 600)
    assert loads.queues is not None
    assert loads.queues.waiting == 10
    assert world.stats.num_running_reqs.total == 2, "SGLang's own count is not touched"


def test_whenever_sglang_logs_ours_are_in() -> None:
    world = World()
    world.load = Load(1, 0, 0)
    world.scheduler.metrics_collector.log_stats(world.stats)
    assert world.logged[0].num_running_reqs.total == 3
    assert world.scheduler.load_inquirer.max_running_requests == 9, "the rest is SGLang's"


def test_the_last_publication_says_that_nothing_is_left() -> None:
    world = World()
    world.numbers.publish()
    assert world.logged == [], "an idle engine leaves it to SGLang"
    for load in (Load(1, 0, 0), NOTHING, NOTHING):
        world.load = load
        world.now_s += PUBLISH_EVERY_S
        world.numbers.publish()
    assert [stats.num_running_reqs.total for stats in world.logged] == [3, 2]


def test_it_is_published_at_most_so_often() -> None:
    world = World()
    world.load = Load(1, 0, 0)
    for _ in range(10):
        world.numbers.publish()
        world.now_s += PUBLISH_EVERY_S / 4
    assert len(world.logged) == 3


def test_what_a_chunk_starts_with_is_published_before_it_blocks_the_loop() -> None:
    world = World()
    world.load = Load(0, 1, 500)
    world.numbers.publish()
    world.load = Load(1, 0, 0)
    world.numbers.publish(at_once=True)
    assert [stats.num_running_reqs.total for stats in world.logged] == [2, 3]


@pytest.mark.parametrize("metrics", [True, False])
def test_tokens_are_counted_where_sglang_counts(metrics: bool) -> None:
    world = World(metrics=metrics)
    world.numbers.count_prefill(0)
    world.numbers.count_prefill(70)
    counted = world.collector.increment_realtime_tokens.call_args_list
    assert [call.kwargs["prefill_compute_tokens"] for call in counted] == [70] * metrics
    effective = world.collector.increment_effective_prefill_tokens.call_args_list
    assert [call.kwargs["input_tokens"] for call in effective] == [70] * metrics
    world.load = Load(1, 0, 0)
    world.numbers.publish()
    assert len(world.logged) == metrics
    assert len(world.snapshots) == 1, "/v1/loads does not depend on metrics"
