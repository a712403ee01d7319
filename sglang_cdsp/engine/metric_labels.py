"""Labels of SGLang's gauges and counters in a pool: those of one replica with many ranks.

Decode's servers have no ``dp_rank`` label unless they are replicated. SGLang's Rust router refuses
to merge metrics whose labels have different names, so that with it ``/engine_metrics`` would fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang.srt.runtime_context import get_parallel


def replica_labels(
    labels: Mapping[str, Any], instance: int, tp_rank: int, tp_size: int
) -> dict[str, Any]:
    """Labels without ``dp_rank``, whose ``tp_rank`` counts through the ranks of all instances.

    A ``dp_rank`` that ``--extra-metric-labels`` has put there stays.
    """
    kept = {key: value for key, value in labels.items() if (key, value) != ("dp_rank", instance)}
    return {**kept, "tp_rank": instance * tp_size + tp_rank}


def collect_as_one_replica(
    original: Callable[..., None],
    collector: Any,
    labels: Mapping[str, Any],
    *args: Any,
    **more: Any,
) -> None:
    """AROUND hook on ``SchedulerMetricsCollector.__init__``."""
    parallel = get_parallel()
    ranks = int(parallel.dp_rank or 0), int(parallel.tp_rank), int(parallel.tp_size)
    original(collector, replica_labels(labels, *ranks), *args, **more)
