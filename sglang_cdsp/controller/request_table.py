"""The requests that are not over, by id and by their place in the pool's order of tasks."""

from __future__ import annotations

from sglang_cdsp.controller.phases import BEFORE_A_PLAN
from sglang_cdsp.controller.request import PoolRequest


class RequestTable:
    """Requests by SGLang's id, and those that have a plan by sequence number.

    A client may use an id again as soon as it has its answer, so a request that still drains may
    have lost its id to another.
    """

    def __init__(self) -> None:
        self._by_rid: dict[str, PoolRequest] = {}
        self._by_seq: dict[int, PoolRequest] = {}

    @property
    def requests(self) -> tuple[PoolRequest, ...]:
        """Those that have their id, by arrival."""
        return tuple(self._by_rid.values())

    @property
    def without_plan(self) -> tuple[PoolRequest, ...]:
        """Those that wait for decode or for a plan, by arrival."""
        return tuple(r for r in self._by_rid.values() if r.phase in BEFORE_A_PLAN)

    @property
    def with_plan(self) -> tuple[PoolRequest, ...]:
        """Those that have a plan, in the order of their tasks."""
        return tuple(self._by_seq.values())

    def named(self, rid: str) -> PoolRequest | None:
        """The request that has an id now."""
        return self._by_rid.get(rid)

    def task(self, seq: int) -> PoolRequest | None:
        """The request whose plan has a sequence number; None if it is over."""
        return self._by_seq.get(seq)

    def matching(self, rid: str, *, everything: bool) -> tuple[PoolRequest, ...]:
        """Requests that SGLang's abort names: ids that begin with ``rid``, or all."""
        return tuple(
            request
            for request in self._by_rid.values()
            if not request.probe and (everything or request.rid.startswith(rid))
        )

    def add(self, request: PoolRequest) -> None:
        """A request got in; it has its id from now on."""
        self._by_rid[request.rid] = request

    def add_task(self, request: PoolRequest) -> None:
        """A request has a sequence number."""
        self._by_seq[request.seq] = request

    def remove_task(self, request: PoolRequest) -> None:
        """A request has a plan no longer; it keeps its id."""
        self._by_seq.pop(request.seq, None)

    def remove(self, request: PoolRequest) -> bool:
        """A request is over; returns whether it still had its id."""
        self._by_seq.pop(request.seq, None)
        if self._by_rid.get(request.rid) is not request:
            return False
        del self._by_rid[request.rid]
        return True
