"""How requests end: the one place that answers clients and frees what was held."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.policies import Policy


class Endings:
    """Answers clients, tells decode, and gives up id, room and slots of requests that are over."""

    def __init__(
        self,
        *,
        table: RequestTable,
        ledger: InstanceLedger,
        policy: Policy,
        rooms: RoomManager,
        effects: Effects,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self._table = table
        self._ledger = ledger
        self._policy = policy
        self._rooms = rooms
        self._effects = effects
        self._clock = clock

    def answer(self, request: PoolRequest, status: HTTPStatus, reason: str) -> None:
        """Tell a client why its request ends, if there is one that nobody has answered yet."""
        if not request.answered and not request.probe:
            request.answered = True
            request.status = status
            self._effects.answer(request, status, reason)

    def turn_away(
        self,
        request: PoolRequest,
        reason: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
    ) -> None:
        """A request never got in: neither its id nor its room is its own."""
        request.error = reason
        request.advance(Event.REFUSE)
        self.answer(request, status, reason)
        self._rooms.turn_away(request, reason)
        self._effects.ended(request)

    def refuse(self, request: PoolRequest, status: HTTPStatus, reason: str) -> None:
        """A request that got in ends without a plan."""
        request.error = reason
        request.advance(Event.REFUSE)
        self.answer(request, status, reason)
        self.without_plan(request)

    def without_plan(self, request: PoolRequest) -> None:
        """A request has ended without a plan and its client was answered: decode is told."""
        self._rooms.settle(request)
        self.over(request)

    def plan_ended(self, request: PoolRequest) -> None:
        """Nothing of a plan is left on any instance, and its request gets another one."""
        self._table.remove_task(request)
        self._ledger.release(request.seq)
        self._effects.recalled(request)
        request.forget_plan()

    def over(self, request: PoolRequest) -> None:
        """A request has ended and nothing of it is left on any instance."""
        if self._table.remove(request):
            # Else a new request has the id, and the policy would take this end for its.
            self._policy.finish(request.rid, self._clock())
        self._rooms.leave(request)
        self._ledger.release(request.seq)
        self._effects.ended(request)
