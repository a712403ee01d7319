"""Keeps the seats of a pool filled: watches lives, gives up the dead, starts and joins the next.

It is one turn of the controller's loop, ``tick``, and never waits. What it decides reaches
processes through the ``Launcher``, requests through ``SeatRequests``, and all others through
``Wires``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from sglang_cdsp.controller.seats.joining import Facts, Joining
from sglang_cdsp.controller.seats.launcher import Ended, Failing, Launcher, Started
from sglang_cdsp.controller.seats.states import PRESENT, Cause, SeatState
from sglang_cdsp.controller.seats.table import SeatTable
from sglang_cdsp.controller.seats.watch import SeatWatch
from sglang_cdsp.controller.seats.ways import SeatObserver, SeatRequests, Wires
from sglang_cdsp.protocol.messages import (
    Answered,
    AnyReport,
    Hello,
    Invitation,
    LeaveOrder,
    Streamed,
)

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25


class SeatKeeper:
    """The seats of one pool whose first lives take part."""

    def __init__(
        self,
        *,
        table: SeatTable,
        launcher: Launcher,
        requests: SeatRequests,
        wires: Wires,
        observers: Sequence[SeatObserver],
        hellos: Mapping[tuple[int, int], Hello],
        slots: Mapping[int, int | None],
        tp_size: int,
        clock: Callable[[], float],
    ) -> None:
        """Take over a pool that is up.

        Args:
            table: of seats that are up.
            hellos: greetings of the first lives, by seat and tensor-parallel rank.
            slots: KV slots of each seat's first life, in tokens; a next one gets as many.
            clock: monotonic seconds.
        """
        self.table = table
        self._launcher = launcher
        self._requests = requests
        self._wires = wires
        self._observers = observers
        self._facts = {key: Facts.of(hello) for key, hello in hellos.items()}
        self._slots = slots
        self._tp_size = tp_size
        self._clock = clock
        self._watch = SeatWatch()
        self._looked_s = float("-inf")
        self._hellos: dict[int, dict[int, Hello]] = {}
        self._ready: set[int] = set()
        self._told_lost: set[int] = set()
        self._joining: Joining | None = None

    # -- one turn -------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        now_s = self._clock()
        for event in self._launcher.poll():
            match event:
                case Started(seat=seat, incarnation=incarnation):
                    if incarnation == self.table.incarnation(seat):
                        self._ready.add(seat)
                case Failing(seat=seat, incarnation=incarnation, cause=cause, words=words):
                    if incarnation == self.table.incarnation(seat):
                        self.give_up(seat, cause, words)
                case Ended(seat=seat):
                    self._ended(seat)
        if now_s >= self._looked_s + LOOK_EVERY_S:
            self._looked_s = now_s
            self._look(now_s)
        self._end_drained()
        self._start_due(now_s)
        self._greet()
        self._join()

    def _look(self, now_s: float) -> None:
        vitals = {
            seat: seen
            for seat in self.table.in_state(SeatState.STARTING, *PRESENT)
            if (seen := self._launcher.vitals(seat)) is not None
        }
        for symptom in self._watch.look(now_s, vitals):
            self.give_up(symptom.seat, symptom.cause, symptom.words)

    # -- the end of a life ----------------------------------------------------------------

    def give_up(self, seat: int, cause: Cause, words: str) -> None:
        """A life is dead, or is ended because it cannot be relied on."""
        before = self.table.state(seat)
        if self.table.lost(seat, cause, words, self._clock()):
            logger.error("sglang-cdsp: instance %d is lost: %s", seat, words)
            self._died(seat, cause)
            self._dismiss(seat, before, words)

    def _dismiss(self, seat: int, before: SeatState, words: str) -> None:
        """End the processes of a life, and let all others know. ``before`` is where it stood."""
        incarnation = self.table.incarnation(seat)
        self._wires.listening(seat, listens=False)
        self._launcher.end(seat)
        self._watch.forget(seat)
        self._hellos.pop(seat, None)
        self._ready.discard(seat)
        for other in self.table.present:
            self._wires.send(other, LeaveOrder(seat=seat, incarnation=incarnation))
        if self._joining is not None and self._joining.seat == seat:
            self._joining = None
        if before in PRESENT:
            self._told_lost.add(seat)
            self._requests.on_seat_lost(seat, words)
        self._changed(seat, SeatState.ENDING, words)

    def _ended(self, seat: int) -> None:
        """The kernel has confirmed the end of every process of a life."""
        if self.table.state(seat) is not SeatState.ENDING:
            self.give_up(seat, Cause.ENDED, "its processes have ended")
        self.table.ended(seat, self._clock())
        self._wires.emptied(seat)
        if seat in self._told_lost:
            self._told_lost.discard(seat)
            self._requests.on_seat_ended(seat)
        self._settle(seat)

    def _settle(self, seat: int) -> None:
        """Say what comes next for a seat that is down."""
        reason = self.table.reason(seat)
        comes_back = self.table.coming_back(seat)
        self._requests.on_seat_stays_down(seat, "" if comes_back else reason)
        if not comes_back:
            level = logging.ERROR if seat in self.table.degraded else logging.INFO
            logger.log(level, "sglang-cdsp: instance %d stays down: %s", seat, reason)
        self._changed(seat, SeatState.DOWN, reason)

    def _end_drained(self) -> None:
        for seat in self.table.in_state(SeatState.DRAINING):
            if self._requests.seat_idle(seat):
                self._leave(seat)

    def _leave(self, seat: int) -> None:
        before = self.table.state(seat)
        self.table.leaving(seat)
        self._dismiss(seat, before, "it was asked to leave")

    # -- the next life --------------------------------------------------------------------

    def _start_due(self, now_s: float) -> None:
        for seat in self.table.due(now_s):
            if self._wires.quiet():
                return  # its memory may be somebody else's now
            incarnation = self.table.started(seat)
            logger.info("starting life %d of instance %d", incarnation, seat)
            self._launcher.start(seat, incarnation, self._slots.get(seat))
            self._changed(seat, SeatState.STARTING, "")

    def on_report(self, report: AnyReport) -> None:
        """A report from a scheduler. Those of former lives mean nothing any more."""
        seat = report.instance
        if report.incarnation != self.table.incarnation(seat):
            return
        match report:
            case Hello():
                if self.table.state(seat) is SeatState.STARTING:
                    self._hellos.setdefault(seat, {})[report.tp_rank] = report
                else:
                    logger.warning("instance %d greets a second time", seat)
            case Invitation():
                if self._joining is not None:
                    self._joining.on_invitation(report)
            case _ if self.table.state(seat) not in PRESENT:
                return
            case Answered():
                self._wires.answered(report)
            case Streamed():
                self._requests.on_report(report)
                self._wires.streamed(report)
            case _:
                self._requests.on_report(report)

    def _greet(self) -> None:
        """Let lives join that are ready, have greeted, and hear what is sent to them."""
        for seat in self.table.in_state(SeatState.STARTING):
            hellos = self._hellos.get(seat, {})
            if seat not in self._ready or len(hellos) < self._tp_size:
                continue
            if why := self._misfit(seat):
                # Memory that the former life had may take a moment to come back.
                self.give_up(seat, Cause.UNFIT, why)
            elif self._wires.connected(seat) and not self._wires.quiet():
                self.table.greeted(seat)
                self._wires.listening(seat, listens=True)
                self._wires.tell(seat)
                self._changed(seat, SeatState.JOINING, "")

    def _misfit(self, seat: int) -> str:
        """Why a life that has greeted cannot take its predecessor's place; "" if it can."""
        for rank, hello in sorted(self._hellos[seat].items()):
            if why := self._facts[(seat, rank)].misfit(Facts.of(hello)):
                return why
        return ""

    def _join(self) -> None:
        seat = self._next_to_join() if self._joining is None else None
        if seat is not None:
            self._joining = Joining(
                seat,
                self.table.incarnation(seat),
                self._hellos.pop(seat),
                self._partners,
                self._wires,
                self._requests,
                self._clock,
            )
        joining = self._joining
        if joining is None:
            return
        joining.step()
        if joining.error:
            self.give_up(joining.seat, Cause.UNFIT, joining.error)
        elif joining.done:
            self._joining = None
            self.table.joined(joining.seat)
            self._requests.on_seat_up(joining.seat)
            logger.info(
                "instance %d takes part again, in life %d", joining.seat, joining.incarnation
            )
            self._changed(joining.seat, SeatState.UP, "")

    def _next_to_join(self) -> int | None:
        """The first life that has done all that its predecessor was told."""
        for seat in self.table.in_state(SeatState.JOINING):
            why = self._wires.caught_up(seat)
            if why:
                self.table.hold(seat, why)
                self.give_up(seat, Cause.UNFIT, why)
            elif why is not None:
                return seat
        return None

    def _partners(self) -> dict[int, int]:
        """The seats that a new life links up with, and their lives."""
        seats = self.table.in_state(SeatState.UP, SeatState.DRAINING)
        return {seat: self.table.incarnation(seat) for seat in seats}

    # -- asked for by people --------------------------------------------------------------

    def drain(self, seat: int) -> None:
        """Let a seat finish and take it out; one that comes up is ended at once.

        Raises:
            ValueError: it cannot leave now; says why.
        """
        before = self.table.state(seat)
        self.table.drain(seat)
        if before is SeatState.UP:
            logger.info("instance %d finishes what it has, and leaves", seat)
            self._requests.on_seat_draining(seat)
            self._changed(seat, SeatState.DRAINING, "")
        elif before in (SeatState.STARTING, SeatState.JOINING):
            self._leave(seat)
        elif before is SeatState.DOWN:
            self._settle(seat)

    def start(self, seat: int) -> None:
        """Take a seat into use again.

        Raises:
            ValueError: there is no such seat.
        """
        self.table.check(seat)
        before = self.table.state(seat)
        self.table.start(seat, self._clock())
        if before is SeatState.DRAINING:
            self._requests.on_seat_up(seat)
            self._changed(seat, SeatState.UP, "")
        elif before in (SeatState.DOWN, SeatState.ENDING):
            self._requests.on_seat_stays_down(seat, "")

    def _changed(self, seat: int, state: SeatState, why: str) -> None:
        for observer in self._observers:
            observer.seat_changed(seat, self.table.incarnation(seat), state.value, why)

    def _died(self, seat: int, cause: Cause) -> None:
        for observer in self._observers:
            observer.seat_died(seat, cause.value)
