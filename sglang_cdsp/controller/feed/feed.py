"""Answers ``/cdsp/timeline``: what has changed since the last answer, in a bounded amount."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_cdsp.controller.feed.recent import Recent
from sglang_cdsp.controller.feed.records import waiting_record
from sglang_cdsp.controller.feed.samples import FIELDS, Samples, sample
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import BEFORE_A_PLAN, Phase
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.pool_state import PoolState
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.form import Form

logger = logging.getLogger(__name__)

MOST_RECORDS = 100
"""Requests in one answer; who asks again at once gets the next ones."""
MOST_WAITING = 50
"""Requests without a plan in one answer; the others are counted."""
MOST_LIVE = 1000
"""Numbers of requests with a plan in one answer."""


@dataclass(frozen=True)
class Facts:
    """What does not change while a pool runs.

    Attributes:
        model: as clients call it.
        form: of the pool, the name of a ``Form`` in lower case.
        tp_size: ranks of an instance.
        layers: of the model.
    """

    model: str
    form: str
    tp_size: int
    layers: int


class Feed:
    """Tells the page what the pool does. Reads only, and only when it is asked.

    Times are monotonic seconds; an answer has the present one, by which the page sets its clock.
    """

    def __init__(
        self,
        recent: Recent,
        *,
        requests: PoolState,
        ledger: InstanceLedger,
        planning: Planning,
        layers: Callable[[int, int], int],
        seats: Callable[[], list[dict[str, Any]]],
        decode_ranks: Callable[[], int],
        facts: Facts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Tell of these.

        Args:
            recent: what has ended.
            requests: what has not.
            layers: ``(rank, serial) -> n``, see ``ProgressBoard.layers``.
            seats: as ``/cdsp/status`` shows them.
            decode_ranks: how many ranks of decode servers can be reached.
        """
        self._recent = recent
        self._requests = requests
        self._ledger = ledger
        self._planning = planning
        self._layers = layers
        self._seats = seats
        self._decode_ranks = decode_ranks
        self._facts = facts
        self._clock = clock
        self._has_roles = facts.form == Form.ONE_SERVER.name.lower()
        recent.has_roles(ledger.roles)
        self._samples = Samples(recent.next_version)
        self._epoch = uuid.uuid4().hex
        self._warned = False

    def tick(self, now_s: float) -> None:
        """The controller's loop comes round: once a second the pool is looked at."""
        if not self._samples.due(now_s):
            return
        try:
            regulation = self._planning.regulator.snapshot(now_s)
            taken = sample(
                [*self._waiting(), *self._planned()],
                at_s=now_s,
                tokens=self._recent.computed_tokens,
                ends=self._recent.ends,
                regulation=regulation,
            )
            self._samples.add(taken, now_s)
        except Exception:
            if not self._warned:
                self._warned = True
                logger.exception("sglang-cdsp: /cdsp has no curves, please file it")

    def answer(self, since: int) -> dict[str, Any]:
        """What is new after version ``since``; 0 for all that is kept.

        ``next`` is what to ask for next, at once if there is ``more``. Another ``epoch`` is another
        start of the server: what was told before means nothing any more.
        """
        now_s = self._clock()
        since = since if 0 <= since <= self._recent.version else 0
        records, upto = self._records(since)
        waiting, planned = self._waiting(), self._planned()
        return {
            "epoch": self._epoch,
            "now_s": round(now_s, 4),
            "now_unix_s": round(time.time(), 3),
            "next": upto,
            "more": upto < self._recent.version,
            "facts": {
                "model": self._facts.model,
                "form": self._facts.form,
                "tp_size": self._facts.tp_size,
                "layers": self._facts.layers,
                "sample": list(FIELDS),
            },
            "requests": records,
            "live": (
                [self._recent.number(request) for request in planned]
                if len(planned) <= MOST_LIVE
                else None
            ),
            "progress": [found for r in planned if (found := self._progress(r)) is not None],
            "waiting": {
                "requests": len(waiting),
                "tokens": sum(request.tokens for request in waiting),
                "first": [
                    waiting_record(r, self._recent.number(r)) for r in waiting[:MOST_WAITING]
                ],
            },
            "seat_changes": [c.body for c in self._recent.seats_since(since) if c.version <= upto],
            "role_changes": [c.body for c in self._recent.turned_since(since) if c.version <= upto],
            "samples": [s.body["values"] for s in self._samples.since(since) if s.version <= upto],
            "instances": self._instances(now_s),
            "planner": self._planner(now_s),
            "decode_ranks": self._decode_ranks(),
        }

    def _planned(self) -> list[PoolRequest]:
        return [request for request in self._requests.planned if not request.probe]

    def _waiting(self) -> list[PoolRequest]:
        return [request for request in self._requests.requests if request.phase in BEFORE_A_PLAN]

    def _records(self, since: int) -> tuple[list[dict[str, Any]], int]:
        """The first requests that changed after ``since``, and up to which version they reach."""
        changed: list[tuple[int, PoolRequest | dict[str, Any]]] = [
            (ended.version, ended.body) for ended in self._recent.ended_since(since)
        ]
        for request in self._planned():
            version = self._recent.changed(request)
            if version > since:
                changed.append((version, request))
        changed.sort(key=lambda change: change[0])
        first = changed[:MOST_RECORDS]
        upto = first[-1][0] if len(changed) > MOST_RECORDS else self._recent.version
        records = [
            self._recent.live(what) if isinstance(what, PoolRequest) else what for _, what in first
        ]
        return records, upto

    def _progress(self, request: PoolRequest) -> dict[str, Any] | None:
        """How many layers each member has begun of the chunk that runs; None if none does."""
        assert request.plan is not None
        if request.phase is not Phase.RUNNING:
            return None
        group = request.plan.chunks[request.next_chunk].instances
        tp_size = self._facts.tp_size
        return {
            "n": self._recent.number(request),
            "chunk": request.next_chunk,
            "layers": [self._layers(i * tp_size, request.serial) for i in group],
        }

    def _instances(self, now_s: float) -> list[dict[str, Any]]:
        pool = self._ledger.snapshot(now_s)
        return [
            {
                "state": seat["state"],
                "reason": seat["reason"],
                # Decode servers decode for a prefill server, whose seats are all alike.
                "role": pool["roles"][number] if self._has_roles else None,
                "queue_s": round(pool["queue_s"][number], 3),
                "free_tokens": pool["free_tokens"][number],
                "capacity_tokens": pool["capacity_tokens"][number],
                "decoding": self._ledger.decoding(number),
            }
            for number, seat in enumerate(self._seats())
        ]

    def _planner(self, now_s: float) -> dict[str, Any]:
        regulation = self._planning.regulator.snapshot(now_s)
        return {
            "policy": self._planning.policy.name,
            "policy_error": self._planning.policy.error,
            "sp_sizes": list(self._planning.regulator.sp_sizes),
            "improvement_rate": regulation["improvement_rate"],
            "arrival_rate": regulation["arrival_rate"],
            "window_s": regulation["window_s"],
        }
