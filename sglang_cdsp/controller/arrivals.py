"""Requests from arrival to plan: refused, waiting for decode, waiting for the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from sglang_cdsp.controller.absences import Absences
from sglang_cdsp.controller.admission import Admission, RefusedError
from sglang_cdsp.controller.decode.room_manager import RoomManager, shared_room
from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.phases import BEFORE_A_PLAN, Event, Phase
from sglang_cdsp.controller.queue import WaitingQueue
from sglang_cdsp.controller.queue_limits import (
    PASSED_OVER,
    QUEUE_FULL,
    WAITED_TOO_LONG,
    QueueLimits,
)
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.types import Plan


class Arrivals:
    """Lets requests in or turns them away, and keeps those that have no plan yet."""

    def __init__(
        self,
        *,
        absences: Absences,
        table: RequestTable,
        admission: Admission,
        rooms: RoomManager,
        queue: WaitingQueue,
        endings: Endings,
        decode: DecodeServers,
        limits: QueueLimits,
        abort: Callable[[PoolRequest, str], None],
        clock: Callable[[], float],
    ) -> None:
        """``abort`` ends a request, wherever it is, for a reason; ``clock``: monotonic seconds."""
        self._absences = absences
        self._table = table
        self._admission = admission
        self._rooms = rooms
        self._queue = queue
        self._endings = endings
        self._decode = decode
        self._limits = limits
        self._abort = abort
        self._clock = clock

    # -- in -------------------------------------------------------------------------------

    def submit(self, request: PoolRequest, raw_plan: Any) -> None:
        """A request arrived. It is answered at once if it can never run."""
        if not _may_reuse(self._table.named(request.rid)):
            reason = f"request id {request.rid} is in use; send another rid"
            self._endings.turn_away(request, reason)
            return
        try:
            request.forced = self._admission.check(request, raw_plan)
        except (RefusedError, PlannerError) as error:
            self._endings.turn_away(request, str(error))
            return
        if self._crowded_out(request):
            return
        twin = self._rooms.user(request.room)
        reason = self._rooms.claim(request)
        if twin is not None:
            self._abort(twin, reason)
        if reason:
            self._endings.turn_away(request, reason)
            return
        self._table.add(request)
        if self._rooms.known(request):
            self._enqueue(request)

    def _crowded_out(self, request: PoolRequest) -> bool:
        """Keep the queue to its length; whether the request itself was turned away."""
        unavailable = HTTPStatus.SERVICE_UNAVAILABLE
        priority = getattr(request.tokenized, "priority", None)
        if reason := self._limits.refusal(priority):
            self._endings.turn_away(request, reason, unavailable)
            return True
        leaves = self._limits.in_excess(self._table.without_plan, request)
        if leaves is request:
            self._endings.turn_away(request, QUEUE_FULL, unavailable)
            return True
        if leaves is not None:
            self._refuse(leaves, unavailable, PASSED_OVER)
        return False

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
        """Let a request in whose pages, if there will be any, are known."""
        if request.room is not None:
            reason = self._decode.unfit(self._rooms.messages(request.room))
            if reason:
                self._refuse(request, HTTPStatus.INTERNAL_SERVER_ERROR, reason)
                return
        request.advance(Event.PAGES)
        self._queue.add(request)

    def take_back(self, request: PoolRequest) -> None:
        """A request whose plan was recalled waits again, before those that came after it.

        It ends where the seats that prefill now could not take it even if they were empty.
        """
        try:
            if request.forced is None:
                self._admission.recheck(request)
        except PlannerError as error:
            self._endings.refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, str(error))
            return
        self._queue.take_back(request)

    def starts(self) -> Iterator[tuple[PoolRequest, Plan]]:
        """What starts now; each must be bound before the next is asked for."""
        return self._queue.starts()

    # -- out ------------------------------------------------------------------------------

    def leave(self, request: PoolRequest) -> None:
        """A request has been aborted before it had a plan; its client has been answered."""
        self._queue.leave(request)
        self._endings.without_plan(request)

    def decode_known(self) -> None:
        """A decode server made contact: refuse the prompts that none of them takes."""
        for request in self._table.requests:
            if request.phase is Phase.ARRIVED:
                try:
                    self._admission.check_decode(request)
                except RefusedError as error:
                    self._refuse(request, HTTPStatus.BAD_REQUEST, str(error))

    def sizes_changed(self) -> None:
        """Refuse the waiting prompts that no longer fit even an empty pool."""
        for request in self._queue.to_plan():
            try:
                self._admission.recheck(request)
            except PlannerError as error:
                self._refuse(request, HTTPStatus.BAD_REQUEST, str(error))

    def refuse_named(self, rid: str, reason: str) -> None:
        """A waiting request turned out to be at fault; one with a plan is its home's to refuse."""
        request = self._table.named(rid)
        if request is not None and request.phase in BEFORE_A_PLAN:
            self._refuse(request, HTTPStatus.BAD_REQUEST, reason)

    def end_overdue(self) -> None:
        """Fail the requests that decode has not asked for, or that nothing started, in time."""
        for request in self._limits.overdue(self._table.without_plan, self._clock()):
            self._refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, WAITED_TOO_LONG)
        for request in self._rooms.without_pages(self._decode.patience_s):
            reason = self._decode.overdue(request.room, request.tokens)
            self._refuse(request, HTTPStatus.INTERNAL_SERVER_ERROR, reason)
        for request, reason in self._absences.overdue():
            self._refuse(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)

    def _refuse(self, request: PoolRequest, status: HTTPStatus, reason: str) -> None:
        self._queue.leave(request)
        self._endings.refuse(request, status, reason)


def _may_reuse(request: PoolRequest | None) -> bool:
    """Whether a request id is free: a client may use it again once it has its answer.

    That may come before the report of it. Of one that is not answered yet SGLang's front end knows.
    """
    if request is None:
        return True
    if request.decodes:
        return request.answered  # its output comes by here
    if request.phase in (Phase.DRAINING, Phase.RELEASING):
        return not request.recalled
    return request.phase is Phase.STOCK and (
        request.first_token_s is not None or not request.reachable
    )
