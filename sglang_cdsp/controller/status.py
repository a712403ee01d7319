"""What the controller tells of itself: to the status route, to the schedulers, and of its load."""

from __future__ import annotations

import json
import time
from typing import Any

from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.lifecycle import Lifecycle
from sglang_cdsp.controller.metrics import PoolMetrics
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.pool_seats import PoolSeats
from sglang_cdsp.protocol.messages import LoadOrder, StatusOrder

TELL_LOAD_EVERY_S = 0.25


class PoolStatus:
    """What ``GET /cdsp/status`` and ``/server_info`` show."""

    def __init__(
        self,
        *,
        planning: Planning,
        ledger: InstanceLedger,
        lifecycle: Lifecycle,
        decode: DecodeServers,
        metrics: PoolMetrics,
        seats: PoolSeats,
        decodes: bool,
    ) -> None:
        """Show these; ``decodes``: the pool decodes, too."""
        self._planning = planning
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._decode = decode
        self._metrics = metrics
        self._seats = seats
        self._decodes = decodes

    def snapshot(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        now_s = time.monotonic()
        return {
            **self._planning.snapshot(now_s),
            "decode": self._decode.snapshot(),
            "pool": self._ledger.snapshot(now_s),
            "roles": str(self._ledger.roles),
            "prefixes": self._prefixes(),
            "requests": len(self._lifecycle.requests),
            "counters": self._metrics.snapshot(),
            "seats": self._seats.snapshot(),
        }

    def order(self) -> StatusOrder:
        """The planner's part, for the schedulers: ``/server_info`` asks them."""
        status = self._planning.snapshot(time.monotonic())
        if self._decodes:
            status["roles"] = str(self._ledger.roles)
        return StatusOrder(status=json.dumps(status))

    def _prefixes(self) -> dict[str, Any] | None:
        """What is known of caches, and the copies between them; None where nothing is reused."""
        prefixes = self._planning.prefixes
        if prefixes is None:
            return None
        return {**prefixes.snapshot(), "copies": self._lifecycle.copies.snapshot()}


class LoadTold:
    """Lets one instance count what waits in the pool into SGLang's own numbers."""

    def __init__(self, lifecycle: Lifecycle, seats: PoolSeats) -> None:
        """Nothing waits, and nobody was told."""
        self._lifecycle = lifecycle
        self._seats = seats
        self._told = (0, (0, 0))
        self._told_s = 0.0

    def tick(self, now_s: float) -> None:
        """Tell it if it has changed, every so often at most."""
        load = self._lifecycle.waiting
        seat = min(self._seats.up, default=0)
        before = self._told
        if (seat, load) == before or now_s < self._told_s + TELL_LOAD_EVERY_S:
            return
        self._told, self._told_s = (seat, load), now_s
        order = LoadOrder(requests=load[0], tokens=load[1])
        self._seats.told.load(seat, order)
        self._seats.send(seat, order)
        if before[0] != seat:
            self._seats.send(before[0], LoadOrder(requests=0, tokens=0))
