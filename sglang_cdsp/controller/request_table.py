"""The requests that are not over, and what becomes free when one is."""

from __future__ import annotations

from collections.abc import Callable

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.request import Phase, PoolRequest
from sglang_cdsp.planner.policies import Policy


class RequestTable:
    """See the module's text.

    Attributes:
        by_rid: all of them, by SGLang's request id.
        by_seq: those that have a plan, by their place in the pool's order of tasks.
    """

    def __init__(
        self,
        *,
        ledger: InstanceLedger,
        policy: Policy,
        rooms: RoomManager,
        effects: Effects,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self._ledger = ledger
        self._policy = policy
        self._rooms = rooms
        self._out = effects
        self._clock = clock
        self.by_rid: dict[str, PoolRequest] = {}
        self.by_seq: dict[int, PoolRequest] = {}

    def end(self, request: PoolRequest) -> None:
        """A request is over, and nothing of it is left anywhere."""
        request.phase = Phase.ENDED
        if self.by_rid.get(request.rid) is request:
            # Else a new request has the id, and the policy would take this end for its.
            del self.by_rid[request.rid]
            self._policy.finish(request.rid, self._clock())
        self.by_seq.pop(request.seq, None)
        self._rooms.leave(request)
        self._ledger.release(request.seq)
        self._out.ended(request)
