"""The pool's KV events on their way out, by SGLang's own publisher.

One for the pool, at the port that ``--kv-events-config`` names: sequence numbers, replay and topic
are SGLang's. Subscribers see data-parallel rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sglang.srt.disaggregation import kv_events as stock

from sglang_cdsp.controller.prefixes.shown import Renaming
from sglang_cdsp.protocol.kv_events import read_config
from sglang_cdsp.releases import kv_events_have_formats


class PoolPublisher:
    """Publishes the events of one cache, if the server is to publish any."""

    def __init__(self, config: str | None) -> None:
        """Open SGLang's publisher.

        Args:
            config: the value of ``--kv-events-config``.

        Raises:
            ValueError: it cannot be read, or names no publisher.
            zmq.ZMQError: its port cannot be had.
        """
        read = read_config(config)
        self._stock = None if read is None else stock.EventPublisherFactory.create(config, 0)
        self._namespaced = getattr(read, "format", "default") == "dynamo"

    @property
    def is_open(self) -> bool:
        """Whether there is one."""
        return self._stock is not None

    @property
    def rename(self) -> Renaming | None:
        """How the format's names of pages follow from those in SGLang's trees; None for as is."""
        return _namespaced if self._namespaced and kv_events_have_formats() else None

    def publish(self, events: Sequence[Any]) -> None:
        """Publish events, in order, as one batch; none for no events."""
        if self._stock is not None and events:
            self._stock.publish(stock.KVEventBatch(ts=time.time(), events=list(events)))

    def sources(self, block_size: int) -> list[dict[str, Any]]:
        """Where a process of this machine can subscribe, as SGLang 0.5.23 tells its gRPC server."""
        describe = getattr(self._stock, "describe_local_source", None)
        source = None if describe is None else describe(block_size)
        return [] if source is None else [source]


def _namespaced(name: int, extra_key: str | None, cache_salt: str | None) -> int:
    seed = stock.kv_event_namespace_seed(extra_key=extra_key, cache_salt=cache_salt)
    return int(stock.namespaced_block_hash(name, namespace_seed=seed))
