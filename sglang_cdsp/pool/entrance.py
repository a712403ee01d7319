"""Requests from arrival to plan: refused, waiting for decode, waiting for the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.pool.admission import Admission, RefusedError
from sglang_cdsp.pool.books import Books
from sglang_cdsp.pool.decode_servers import DecodeServers
from sglang_cdsp.pool.entry import Entry, Phase
from sglang_cdsp.pool.forced import ForcedPlanError
from sglang_cdsp.pool.outbox_protocol import Outbox
from sglang_cdsp.pool.room_keeper import RoomKeeper, shared_room
from sglang_cdsp.pool.rooms import RoomMessage
from sglang_cdsp.pool.waiting import Waiting

BEFORE_A_PLAN = (Phase.ARRIVED, Phase.WAITING)


class Entrance:
    """See the module's text."""

    def __init__(
        self,
        *,
        books: Books,
        admission: Admission,
        rooms: RoomKeeper,
        waiting: Waiting,
        outbox: Outbox,
        decode: DecodeServers,
        abort: Callable[[Entry, str], None],
    ) -> None:
        """``abort`` ends a request, wherever it is, for a reason."""
        self._books = books
        self._admission = admission
        self._rooms = rooms
        self._waiting = waiting
        self._out = outbox
        self._decode = decode
        self._abort = abort

    # -- in -------------------------------------------------------------------------------

    def submit(self, entry: Entry, raw_plan: Any) -> None:
        """A request arrived. It is answered at once if it can never run."""
        if not _may_reuse(self._books.by_rid.get(entry.rid)):
            self._turn_away(entry, f"request id {entry.rid} is in use; send another rid")
            return
        try:
            entry.forced = self._admission.check(entry, raw_plan)
        except (RefusedError, ForcedPlanError, PlannerError) as error:
            self._turn_away(entry, str(error))
            return
        twin = self._rooms.user(entry.room)
        reason = self._rooms.claim(entry)
        if twin is not None:
            self._abort(twin, reason)
        if reason:
            self._turn_away(entry, reason)
            return
        self._books.by_rid[entry.rid] = entry
        if self._rooms.known(entry):
            self._enqueue(entry)

    def pages_named(self, room: int, message: RoomMessage) -> None:
        """Decode named destination pages of a room."""
        first = self._rooms.named(room, message)
        entry = self._rooms.user(room)
        if entry is None:
            return
        if not first:
            self._abort(entry, shared_room(room))
        elif entry.phase is Phase.ARRIVED and self._rooms.known(entry):
            self._enqueue(entry)

    def _enqueue(self, entry: Entry) -> None:
        entry.phase = Phase.WAITING
        self._waiting.add(entry)

    def starts(self) -> Iterator[tuple[Entry, Plan]]:
        """What starts now; each must be bound before the next is asked for."""
        return self._waiting.starts()

    # -- out ------------------------------------------------------------------------------

    def leave(self, entry: Entry) -> None:
        """A request ends without a plan; its client has been answered."""
        self._waiting.leave(entry)
        self._rooms.settle(entry)
        self._books.end(entry)

    def decode_known(self) -> None:
        """A decode server made contact: refuse the prompts that none of them takes."""
        for entry in tuple(self._books.by_rid.values()):
            if entry.phase is Phase.ARRIVED:
                try:
                    self._admission.check_decode(entry)
                except RefusedError as error:
                    self._fail(entry, HTTPStatus.BAD_REQUEST, str(error))

    def sizes_changed(self) -> None:
        """Refuse the waiting prompts that no longer fit even an empty pool."""
        for entry in self._waiting.to_plan():
            try:
                self._admission.recheck(entry)
            except PlannerError as error:
                self._fail(entry, HTTPStatus.BAD_REQUEST, str(error))

    def refuse(self, rid: str, reason: str) -> None:
        """A waiting request turned out to be at fault; one with a plan is its home's to refuse."""
        entry = self._books.by_rid.get(rid)
        if entry is not None and entry.phase in BEFORE_A_PLAN:
            self._fail(entry, HTTPStatus.BAD_REQUEST, reason)

    def end_overdue(self) -> None:
        """Fail the requests that decode has not asked for in time."""
        for entry in self._rooms.without_pages(self._decode.patience_s):
            reason = self._decode.overdue(entry.room, entry.tokens)
            self._fail(entry, HTTPStatus.INTERNAL_SERVER_ERROR, reason)

    def _turn_away(self, entry: Entry, reason: str) -> None:
        """It never got in: neither its id nor its room is its own."""
        entry.error = reason
        entry.phase = Phase.ENDED
        entry.answered = True
        self._out.answer(entry, HTTPStatus.BAD_REQUEST, reason)
        self._rooms.turn_away(entry, reason)
        self._out.ended(entry)

    def _fail(self, entry: Entry, status: HTTPStatus, reason: str) -> None:
        entry.error = reason
        entry.answered = True
        self._out.answer(entry, status, reason)
        self.leave(entry)


def _may_reuse(entry: Entry | None) -> bool:
    """Whether a request id is free: a client may use it again once it has its answer."""
    if entry is None or entry.phase in (Phase.DRAINING, Phase.RELEASING):
        return True
    return entry.one_instance and entry.first_token_s is not None
