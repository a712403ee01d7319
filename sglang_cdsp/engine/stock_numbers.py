"""SGLang's own numbers, with what the engine and the controller hold counted in.

Stock counts its queues and batches. A chunk task is in none of them, so its gauges, ``/v1/loads``
and its token counters would say that a full pool has nothing to do; routers and autoscalers read
them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from sglang_cdsp.engine.stock import StockScheduler

# Gauges and load snapshots are published at most so often while chunk tasks are here.
PUBLISH_EVERY_S = 0.25


@dataclass(frozen=True)
class Load:
    """Requests that SGLang's queues do not hold.

    Attributes:
        running: those of which a chunk has started.
        waiting: those of which none has.
        waiting_tokens: prompt tokens of the latter.
    """

    running: int
    waiting: int
    waiting_tokens: int

    def __add__(self, other: Load) -> Load:
        return Load(
            self.running + other.running,
            self.waiting + other.waiting,
            self.waiting_tokens + other.waiting_tokens,
        )


class StockNumbers:
    """Adds the engine's load to what SGLang publishes, and publishes it while chunks run."""

    def __init__(
        self,
        scheduler: StockScheduler,
        load: Callable[[], Load],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stand between the scheduler and its collector.

        Args:
            load: what SGLang does not have on this instance.
            clock: monotonic seconds.
        """
        self._scheduler = scheduler
        self._load = load
        self._clock = clock
        self._published_s = -PUBLISH_EVERY_S
        self._published = Load(0, 0, 0)
        self.elsewhere = Load(0, 0, 0)
        """What waits at the controller, as it told this instance."""
        scheduler.load_inquirer = _LoadInquirer(scheduler.load_inquirer, self.total)
        if scheduler.metrics_reporter.current_scheduler_metrics_enabled:
            collector = scheduler.metrics_collector
            log_stats = collector.log_stats
            collector.log_stats = lambda stats: log_stats(self._completed(stats))

    def total(self) -> Load:
        """The engine's load and the controller's."""
        return self._load() + self.elsewhere

    def count_prefill(self, tokens: int) -> None:
        """A shard of ``tokens`` was computed here."""
        if tokens and self._scheduler.metrics_reporter.current_scheduler_metrics_enabled:
            collector = self._scheduler.metrics_collector
            collector.increment_realtime_tokens(
                prefill_compute_tokens=tokens, dp_cooperation_info=None
            )
            collector.increment_effective_prefill_tokens(
                input_tokens=tokens, device_hit_tokens=0, host_hit_tokens=0, storage_hit_tokens=0
            )

    def publish(self, *, at_once: bool = False) -> None:
        """Publish the numbers, if the engine has some or had some the last time.

        Args:
            at_once: a chunk starts, and nothing is published until it has ended.
        """
        now_s, load = self._clock(), self.total()
        nothing = Load(0, 0, 0)
        soon = now_s < self._published_s + PUBLISH_EVERY_S
        if load == self._published == nothing or (soon and not at_once):
            return
        self._published_s, self._published = now_s, load
        scheduler = self._scheduler
        if scheduler.metrics_reporter.current_scheduler_metrics_enabled:
            stats = scheduler.metrics_reporter.stats
            scheduler.pool_stats_observer.get_pool_stats().update_scheduler_stats(stats)
            scheduler.metrics_collector.log_stats(stats)
        scheduler.publish_load_snapshot(force=True)

    def _completed(self, stats: Any) -> Any:
        """A copy of SGLang's ``SchedulerStats`` with the load counted in."""
        load = self.total()
        return dataclasses.replace(
            stats,
            num_running_reqs=_more(stats.num_running_reqs, load.running),
            num_queue_reqs=_more(stats.num_queue_reqs, load.waiting),
        )


def _more(count: Any, more: int) -> Any:
    """A ``QueueCount`` with more requests in it, of no priority."""
    return dataclasses.replace(count, total=count.total + more)


class _LoadInquirer:
    """SGLang's ``SchedulerLoadInquirer``, whose loads have ours counted in."""

    def __init__(self, stock: Any, total: Callable[[], Load]) -> None:
        self._stock = stock
        self._total = total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def get_loads(self) -> Any:
        """The ``LoadSnapshot`` of this rank."""
        loads, load = self._stock.get_loads(), self._total()
        queues = loads.queues
        if queues is not None:
            queues = msgspec.structs.replace(queues, waiting=queues.waiting + load.waiting)
        tokens = load.waiting_tokens
        return msgspec.structs.replace(
            loads,
            num_running_reqs=loads.num_running_reqs + load.running,
            num_waiting_reqs=loads.num_waiting_reqs + load.waiting,
            num_waiting_uncached_tokens=loads.num_waiting_uncached_tokens + tokens,
            num_total_tokens=loads.num_total_tokens + tokens,
            num_active_tokens=loads.num_active_tokens + tokens,
            queues=queues,
        )
