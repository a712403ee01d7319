"""Requests from arrival to plan: refused, waiting for decode, waiting for the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from sglang_cdsp.controller.admission import Admission, RefusedError
from sglang_cdsp.controller.decode.room_manager import RoomManager, shared_room
from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.controller.request import Phase, PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.types import Plan

BEFORE_A_PLAN = (Phase.ARRIVED, Phase.WAITING)


class Arrivals:
    """See the module's text."""

    def __init__(
        self,
        *,
        table: RequestTable,
        admission: Admission,
        rooms: RoomManager,
        waiting: WaitingQueue,
        effects: Effects,
        decode: DecodeServers,
        abort: Callable[[PoolRequest, str], None],
    ) -> None:
        """``abort`` ends a request, wherever it is, for a reason."""
        self._table = table
        self._admission = admission
        self._rooms = rooms
        self._waiting = waiting
        self._out = effects
        self._decode = decode
        self._abort = abort

    # -- in -------------------------------------------------------------------------------

    def submit(self, request: PoolRequest, raw_plan: Any) -> None:
        """A request arrived. It is answered at once if it can never run."""
        if not _may_reuse(self._table.by_rid.get(request.rid)):
            self._turn_away(request, f"request id {request.rid} is in use; send another rid")
            return
        try:
            request.forced = self._admission.check(request, raw_plan)
        except (RefusedError, PlannerError) as error:
            self._turn_away(request, str(error))
            return
        twin = self._rooms.user(request.room)
        reason = self._rooms.claim(request)
        if twin is not None:
            self._abort(twin, reason)
        if reason:
            self._turn_away(request, reason)
            return
        self._table.by_rid[request.rid] = request
        if self._rooms.known(request):
            self._enqueue(request)

    def pages_named(self, room: int, message: RoomMessage) -> None:
        """Decode named destination pages of a room."""
        first = self._rooms.named(room, message)
        request = self._rooms.user(room)
        if request is None:
            return
        if not first:
            self._abort(request, shared_room(room))
        elif request.phase is Phase.ARRIVED and self._rooms.known(request):
            self._enqueue(request)

    def _enqueue(self, request: PoolRequest) -> None:
        request.phase = Phase.WAITING
        self._waiting.add(request)

    def starts(self) -> Iterator[tuple[PoolRequest, Plan]]:
        """What starts now; each must be bound before the next is asked for."""
        return self._waiting.starts()

    # -- out ------------------------------------------------------------------------------

    def leave(self, request: PoolRequest) -> None:
        """A request ends without a plan; its client has been answered."""
        self._waiting.leave(request)
        self._rooms.settle(request)
        self._table.end(request)

    def decode_known(self) -> None:
        """A decode server made contact: refuse the prompts that none of them takes."""
        for request in tuple(self._table.by_rid.values()):
            if request.phase is Phase.ARRIVED:
                try:
                    self._admission.check_decode(request)
                except RefusedError as error:
                    self._fail(request, HTTPStatus.BAD_REQUEST, str(error))

    def sizes_changed(self) -> None:
        """Refuse the waiting prompts that no longer fit even an empty pool."""
        for request in self._waiting.to_plan():
            try:
                self._admission.recheck(request)
            except PlannerError as error:
                self._fail(request, HTTPStatus.BAD_REQUEST, str(error))

    def refuse(self, rid: str, reason: str) -> None:
        """A waiting request turned out to be at fault; one with a plan is its home's to refuse."""
        request = self._table.by_rid.get(rid)
        if request is not None and request.phase in BEFORE_A_PLAN:
            self._fail(request, HTTPStatus.BAD_REQUEST, reason)

    def end_overdue(self) -> None:
        """Fail the requests that decode has not asked for in time."""
        for request in self._rooms.without_pages(self._decode.patience_s):
            reason = self._decode.overdue(request.room, request.tokens)
            self._fail(request, HTTPStatus.INTERNAL_SERVER_ERROR, reason)

    def _turn_away(self, request: PoolRequest, reason: str) -> None:
        """It never got in: neither its id nor its room is its own."""
        request.error = reason
        request.phase = Phase.ENDED
        request.answered = True
        self._out.answer(request, HTTPStatus.BAD_REQUEST, reason)
        self._rooms.turn_away(request, reason)
        self._out.ended(request)

    def _fail(self, request: PoolRequest, status: HTTPStatus, reason: str) -> None:
        request.error = reason
        request.answered = True
        self._out.answer(request, status, reason)
        self.leave(request)


def _may_reuse(request: PoolRequest | None) -> bool:
    """Whether a request id is free: a client may use it again once it has its answer."""
    if request is None or request.phase in (Phase.DRAINING, Phase.RELEASING):
        return True
    return request.one_instance and request.first_token_s is not None
