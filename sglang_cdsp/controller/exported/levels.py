"""How the pool stands: the gauges, looked at once a second, and how long instances are busy."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection

from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.exported.instruments import Instruments
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.pool_state import PoolState
from sglang_cdsp.planner.roles import Role

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0

WAITING = {Phase.ARRIVED: "decode", Phase.WAITING: "plan"}
"""What requests of a phase wait for, as the label ``reason`` of ``waiting_requests``."""
RUNNING = {
    Phase.BOUND: "queued",
    Phase.RUNNING: "computing",
    Phase.STOCK: "batched",
    Phase.DECODING: "decoding",
    Phase.DRAINING: "ending",
    Phase.RELEASING: "ending",
}
"""The label ``state`` of ``running_requests``, by phase."""


class Levels:
    """Sets the gauges of a pool, as often as is worth it."""

    def __init__(
        self,
        instruments: Instruments,
        *,
        requests: PoolState,
        ledger: InstanceLedger,
        planning: Planning,
        decode: DecodeServers,
        up: Callable[[], Collection[int]],
        decodes: bool,
    ) -> None:
        """Look at these.

        Args:
            up: the seats that take requests.
            decodes: whether requests can decode in this pool; else every seat is for prefill.
        """
        self._to = instruments
        self._requests = requests
        self._ledger = ledger
        self._planning = planning
        self._decode = decode
        self._up = up
        self._decodes = decodes
        self._busy: Collection[int] = ()
        self._seen_s: float | None = None
        self._looked_s = float("-inf")
        self._warned = False

    def tick(self, now_s: float, busy: Collection[int]) -> None:
        """The controller's loop comes round; ``busy`` are the instances that run something."""
        try:
            if self._seen_s is not None:
                for seat in self._busy:
                    self._to.count("busy_seconds_total", now_s - self._seen_s, seat=seat)
            self._busy, self._seen_s = busy, now_s
            if now_s >= self._looked_s + LOOK_EVERY_S:
                self._looked_s = now_s
                self._look(now_s)
        except Exception:
            if not self._warned:
                self._warned = True
                logger.exception("sglang-cdsp: gauges are not set, please file it")

    def _look(self, now_s: float) -> None:
        phases = Counter(request.phase for request in self._requests.requests if not request.probe)
        waiting = {reason: phases[phase] for phase, reason in WAITING.items()}
        running: Counter[str] = Counter(dict.fromkeys(RUNNING.values(), 0))
        for phase, state in RUNNING.items():
            running[state] += phases[phase]
        for reason, number in waiting.items():
            self._to.put("waiting_requests", number, reason=reason)
        for state, number in running.items():
            self._to.put("running_requests", number, state=state)
        self._to.put("waiting_tokens", self._requests.waiting[1])
        self._instances(now_s)
        regulation = self._planning.regulator.snapshot(now_s)
        self._to.put("improvement_rate", regulation["improvement_rate"])
        self._to.put("arrival_rate", regulation["arrival_rate"])
        for size, learnt in self._planning.correction.snapshot()["sp"].items():
            self._to.put("latency_correction", learnt["factor"], sp_size=size)
        self._to.put("decode_ranks", len(self._decode.ranks))

    def _instances(self, now_s: float) -> None:
        found, up = self._ledger.snapshot(now_s), frozenset(self._up())
        for name, values in (
            ("queue_ahead_seconds", found["queue_s"]),
            ("free_kv_tokens", found["free_tokens"]),
            ("kv_capacity_tokens", found["capacity_tokens"]),
        ):
            for seat, value in enumerate(values):
                self._to.put(name, value, seat=seat)
        seats = int(found["instances"])
        prefixes = self._planning.prefixes
        cached = prefixes.snapshot()["pages_by_instance"] if prefixes else [0] * seats
        for seat in range(seats):
            self._to.put("cached_pages", cached[seat], seat=seat)
            self._to.put("seat_up", float(seat in up), seat=seat)
            has = self._ledger.roles.seats[seat] if self._decodes else Role.PREFILL
            for role in Role:
                self._to.put("seat_role", float(role is has), seat=seat, role=role.value)
            self._to.put("decoding_requests", self._ledger.decoding(seat), seat=seat)
        self._to.put("seats", seats)
        self._to.put("seats_up", len(up))
