"""Seats that are lost, drained and filled again: what becomes of the requests that were on them.

Pure bookkeeping. A seat is lost at once, and its process has ended when the kernel says so. In
between the process may still write, to decode's pages above all, so whatever it could write to is
given to nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from http import HTTPStatus

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.presence import Presence, Stand
from sglang_cdsp.controller.progress import Progress
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.controller.resuming import compute_anew, obstacle
from sglang_cdsp.controller.way_out import WayOut

DRAINED = "it was asked to leave"
PROCESS_ENDED = "its process ended"
NOWHERE = "the rest of the prompt fits no other instances now"


class Losses:
    """Ends, recalls or spares the requests of seats that go."""

    def __init__(
        self,
        *,
        presence: Presence,
        table: RequestTable,
        ledger: InstanceLedger,
        progress: Progress,
        way_out: WayOut,
        rooms: RoomManager,
        endings: Endings,
        effects: Effects,
    ) -> None:
        self._presence = presence
        self._table = table
        self._ledger = ledger
        self._progress = progress
        self._way_out = way_out
        self._rooms = rooms
        self._endings = endings
        self._effects = effects

    # -- what happens to seats ------------------------------------------------------------

    def lost(self, seat: int, why: str) -> None:
        """A seat's process is dead or will be killed; ``why`` is shown to clients."""
        self._presence.lost(seat)
        self._ledger.leaves(seat)
        reason = _reason(seat, why)
        rests: list[PoolRequest] = []
        for request in self._on(seat):
            begun = _has_begun(request, seat)
            request.advance(Event.LOST)
            request.lost.add(seat)
            if begun:
                self._lose(request, seat, f"{reason} with what it had of this request")
                continue
            if request.phase in (Phase.BOUND, Phase.RUNNING):
                rests.append(request)
            # It was never sent into a chunk of this request, so it can write nothing for it.
            self._way_out.gone(request, seat)
        self._plan_anew(seat, rests, reason)

    def left_alone(self, request: PoolRequest, seat: int, why: str) -> None:
        """A request had left a seat that was then lost, and has not arrived at its next home."""
        request.advance(Event.LOST)
        request.lost.add(seat)
        self._lose(request, seat, _reason(seat, why))
        if self._presence.stand(seat) is not Stand.LOST:
            self._process_ended(request, seat)

    def ended(self, seat: int) -> None:
        """The end of a lost seat's process is confirmed: it has drained and released everything."""
        if self._presence.stand(seat) is not Stand.LOST:
            self.lost(seat, PROCESS_ENDED)
        self._presence.ended(seat)
        for request in self._table.with_plan:
            if seat in request.lost:
                self._process_ended(request, seat)
        self._ledger.emptied(seat)

    def up(self, seat: int) -> None:
        """A new process on a seat takes part, or one that drained stays."""
        self._presence.comes_up(seat)
        self._ledger.comes(seat)

    def draining(self, seat: int) -> None:
        """A seat is to end what it has and to get nothing new."""
        self._presence.drains(seat, DRAINED)
        self._ledger.leaves(seat)

    def idle(self, seat: int) -> bool:
        """Whether nothing of any request is on a seat."""
        return not any(True for _ in self._on(seat))

    def _on(self, seat: int) -> Iterable[PoolRequest]:
        """Requests whose plans name a seat's present process.

        Not what has left it and is on its way to its next home (``moves.py``).
        """
        return [r for r in self._table.with_plan if seat in r.reachable]

    # -- what becomes of requests ---------------------------------------------------------

    def _lose(self, request: PoolRequest, seat: int, reason: str) -> None:
        """A request's seat is lost that may have KV of it, or writes in flight."""
        assert request.plan is not None
        if request.recalled or request.output.complete:
            if request.phase is Phase.RUNNING:
                self._progress.drop(request)
            return  # what the seat has of it stays its own until its process has ended
        at_home = seat == request.home
        # It was to answer the client.
        answers = seat not in request.released or request.joined
        match request.phase:
            case Phase.RUNNING if request.decoded:  # its client has had all of its answer
                self._progress.drop(request)
            case Phase.RUNNING if request.needs_no_more_of(seat):
                self._progress.leave_to_home(request)
            case Phase.STOCK | Phase.DECODING:
                self._resume_or_end(request, reason)
            case Phase.BOUND | Phase.RUNNING:
                self._resume_or_end(request, reason)
                self._progress.drop(request)
            case Phase.DRAINING | Phase.RELEASING if request.error:
                if at_home and answers:
                    self._endings.answer(request, request.status, request.error)
            case Phase.DRAINING | Phase.RELEASING if request.decodes:
                if at_home and answers and not request.answered:  # others have no more part in it
                    self._resume_or_end(request, reason)
            case Phase.DRAINING:
                if at_home or not self._way_out.has_drained(request, seat):
                    self._end(request, reason)
            case Phase.RELEASING:
                if at_home and answers and not request.answered:
                    self._end(request, reason)

    def _resume_or_end(self, request: PoolRequest, reason: str) -> None:
        """A request is computed anew when all processes are done with it, if it can be."""
        why_not = "" if request.error or request.answered else obstacle(request)
        if request.error or request.answered or why_not:
            self._end(
                request, f"{reason}, and {why_not}" if request.decodes and why_not else reason
            )
            return
        compute_anew(request)

    def _end(self, request: PoolRequest, reason: str) -> None:
        """A request cannot go on: its client is told now."""
        request.error = request.error or reason
        reason = f"{reason}: send it again"
        self._endings.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        self._effects.lost(request)

    def _plan_anew(self, seat: int, rests: Collection[PoolRequest], reason: str) -> None:
        """Requests whose plans name a lost seat that has no part in them yet.

        The rest of a plan runs elsewhere from its next chunk on. Where it fits nowhere now and
        nothing of it has run, the request waits for another plan.
        """
        demanded = [request for request in rests if _waits_for_its_seats(request)]
        for request in demanded:
            self._recall(request, seat)
        stuck = set(self._progress.do_without((seat,))).difference(demanded)
        for request in rests:
            if request not in stuck:
                continue
            if request.phase is Phase.BOUND and not request.next_chunk and not request.probe:
                self._recall(request, seat)
            else:
                self._resume_or_end(request, f"{reason}, and {NOWHERE}")
                self._progress.drop(request)
                self._way_out.gone(request, seat)

    def _recall(self, request: PoolRequest, seat: int) -> None:
        """End a plan of which nothing has started; the request is to get another one."""
        request.recalled = True
        self._progress.drop(request)
        self._way_out.gone(request, seat)

    def _process_ended(self, request: PoolRequest, seat: int) -> None:
        assert request.plan is not None
        decoded_there = request.phase is Phase.DECODING and seat == request.home
        if request.phase is Phase.STOCK or decoded_there:
            if request.recalled:
                self._way_out.home_ended(request)
                return
            request.advance(Event.LOST_ENDED)
            request.abort_targets += request.forwarded
            self._rooms.settle(request)
            self._endings.over(request)
        else:
            self._way_out.gone(request, seat)


def _reason(seat: int, why: str) -> str:
    return f"instance {seat} was lost ({why})"


def _has_begun(request: PoolRequest, seat: int) -> bool:
    """Whether an instance was ever sent into a chunk of a request, as far as is known."""
    plan, chunk = request.plan, request.next_chunk
    assert plan is not None
    if request.recalled and not request.decodes:
        return False
    if request.phase is Phase.RUNNING:
        return seat in plan.chunks[chunk].instances
    if request.phase is Phase.BOUND:
        return chunk > 0 and seat in plan.chunks[chunk - 1].instances
    return True


def _waits_for_its_seats(request: PoolRequest) -> bool:
    """Whether a request brought the plan of which nothing has run, and so wants no other."""
    return request.forced is not None and not request.next_chunk and request.phase is Phase.BOUND
