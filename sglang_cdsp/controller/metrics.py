"""What the pool has done since its start, counted from the effects."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.request import PoolRequest

LAST_REPLANS = 16
"""So many changes of plans are shown."""


class PoolMetrics(Observer):
    """Counters of requests, chunks and links, and the last changes of plans.

    The controller's own measurements are not counted.
    """

    def __init__(self) -> None:
        self._bound = 0
        self._prompt_tokens = 0
        self._chunks: Counter[int] = Counter()
        self._ended: Counter[str] = Counter()
        self._stopped = 0
        self._replanned = 0
        self._replans: deque[dict[str, Any]] = deque(maxlen=LAST_REPLANS)

    def bound(self, request: PoolRequest) -> None:
        """A request got its plan."""
        if not request.probe:
            self._bound += 1
            self._prompt_tokens += request.tokens

    def replanned(self, request: PoolRequest) -> None:
        """The rest of the request got another plan, the last of its ``replans``."""
        self._replanned += 1
        change = request.replans[-1].to_dict(request.arrival_s)
        self._replans.append({"rid": request.rid, **change})

    def chunk_started(self, request: PoolRequest) -> None:
        """The request's next chunk was ordered to start."""
        assert request.plan is not None
        if not request.probe:
            self._chunks[request.plan.chunks[request.next_chunk].sp_size] += 1

    def stopped(self, request: PoolRequest) -> None:
        """The request's task was ordered to end before its last chunk had."""
        self._stopped += 1

    def ended(self, request: PoolRequest) -> None:
        """A request is over."""
        if not request.probe:
            self._ended[request.outcome] += 1

    def snapshot(self) -> dict[str, Any]:
        """The counters, JSON-ready: requests and tokens with a plan, chunks by SP size, ends.

        ``last_replans`` are the last changes of plans, as in the plan log.
        """
        return {
            "requests_planned": self._bound,
            "prompt_tokens_planned": self._prompt_tokens,
            "chunks_by_sp_size": {str(size): n for size, n in sorted(self._chunks.items())},
            "requests_ended": dict(sorted(self._ended.items())),
            "tasks_stopped": self._stopped,
            "rests_replanned": self._replanned,
            "last_replans": list(self._replans),
        }
