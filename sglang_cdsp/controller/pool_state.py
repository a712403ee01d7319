"""What the pool does, as its requests show it: who runs, who holds KV, who waits."""

from __future__ import annotations

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_table import RequestTable


class PoolState:
    """Questions about the requests of a table."""

    def __init__(self, table: RequestTable) -> None:
        self._table = table

    @property
    def requests(self) -> tuple[PoolRequest, ...]:
        """Requests that are not over."""
        return self._table.requests

    @property
    def planned(self) -> tuple[PoolRequest, ...]:
        """Requests that have a plan, also those that have lost their id, in the order of tasks."""
        return self._table.with_plan

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests that have no plan yet, and their prompt tokens together."""
        tokens = [request.tokens for request in self._table.without_plan]
        return len(tokens), sum(tokens)

    @property
    def busy_instances(self) -> frozenset[int]:
        """Instances that run a chunk, decode, or have one-instance requests without a token."""
        busy: set[int] = set()
        for request in self._table.with_plan:
            assert request.plan is not None
            if request.phase is Phase.RUNNING:
                busy.update(request.plan.chunks[request.next_chunk].instances)
            elif request.phase is Phase.DECODING or (
                request.phase is Phase.STOCK and request.first_token_s is None
            ):
                busy.update(request.reachable)
        return frozenset(busy)

    @property
    def chunk_running(self) -> bool:
        """Whether a chunk is inside a forward."""
        return any(request.phase is Phase.RUNNING for request in self._table.with_plan)

    @property
    def holding(self) -> bool:
        """Whether an instance holds, or is promised to hold, KV of a request."""
        return bool(self._table.with_plan)

    @property
    def needs_start(self) -> bool:
        """Whether a request with a plan ends only after something more was started for it."""
        elsewhere = (Phase.STOCK, Phase.DECODING)
        return any(
            request.phase is Phase.BOUND or (request.phase in elsewhere and request.reachable)
            for request in self._table.with_plan
        )
