"""What the pool has done since its start, counted from the effects."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.roles import Roles

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
        self._deaths: Counter[str] = Counter()
        self._lost = 0
        self._recalled = 0
        self._resumed = 0
        self._replanned = 0
        self._moved = self._turned = 0
        self._longest_move_s = 0.0
        self._replans: deque[dict[str, Any]] = deque(maxlen=LAST_REPLANS)

    def bound(self, request: PoolRequest) -> None:
        """A request got its plan; one whose plan was recalled was counted before."""
        if not request.probe and not request.recalls:
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

    def lost(self, request: PoolRequest) -> None:
        """The request ends because of an instance that was given up."""
        if not request.probe:
            self._lost += 1

    def recalled(self, request: PoolRequest) -> None:
        """The request is back among those that wait for a plan."""
        self._recalled += 1
        self._resumed += bool(request.output.tokens or request.carried)

    def ended(self, request: PoolRequest) -> None:
        """A request is over."""
        if not request.probe:
            self._ended[request.outcome] += 1

    def moved(self, request: PoolRequest) -> None:
        """Another instance goes on with a request, by the last of its ``moves``."""
        self._moved += 1
        move = request.moves[-1]
        self._longest_move_s = max(self._longest_move_s, move.arrived_s - move.left_s)

    def roles_changed(self, roles: Roles, why: str) -> None:
        """The seats have other roles."""
        self._turned += 1

    def seat_died(self, seat: int, cause: str) -> None:
        """A life of a seat was given up."""
        self._deaths[cause] += 1

    def snapshot(self) -> dict[str, Any]:
        """The counters, JSON-ready: requests and tokens with a plan, chunks by SP size, ends.

        Deaths of instances are counted by cause.
        Lost are those that ended because of an instance that was given up; recalled are plans that
        such an instance had a part in and whose requests got another one, resumed those requests
        that go on from output.
        ``requests_moved`` counts moves of running requests from one instance to another; the
        longest of them took ``longest_move_s`` from one batch to the other.
        ``last_replans`` are the last changes of plans, as in the plan log.
        """
        return {
            "requests_planned": self._bound,
            "prompt_tokens_planned": self._prompt_tokens,
            "chunks_by_sp_size": {str(size): n for size, n in sorted(self._chunks.items())},
            "requests_ended": dict(sorted(self._ended.items())),
            "tasks_stopped": self._stopped,
            "deaths": dict(sorted(self._deaths.items())),
            "requests_lost": self._lost,
            "plans_recalled": self._recalled,
            "requests_resumed": self._resumed,
            "rests_replanned": self._replanned,
            "requests_moved": self._moved,
            "longest_move_s": self._longest_move_s,
            "roles_changed": self._turned,
            "last_replans": list(self._replans),
        }
