"""Plans that are over, computed or dropped: from the last writes to the last slot that is freed.

In one server home keeps its slots and decodes: what it says of that is heard here, too.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.protocol.messages import Drained


class WayOut:
    """Tells decode once nothing writes to it any more, has slots freed, and ends requests.

    A plan that was recalled ends alike, but decode hears nothing and its request waits again.
    """

    def __init__(
        self,
        *,
        rooms: RoomManager,
        effects: Effects,
        endings: Endings,
        ledger: InstanceLedger,
        tp_size: int,
        leave_lane: Callable[[PoolRequest], None],
        wait_again: Callable[[PoolRequest], None],
    ) -> None:
        """What it takes.

        Args:
            leave_lane: gives the lane of a plan's last chunk on.
            wait_again: takes a request whose plan was recalled, once nothing is left of it.
        """
        self._rooms = rooms
        self._effects = effects
        self._endings = endings
        self._ledger = ledger
        self._tp_size = tp_size
        self._leave_lane = leave_lane
        self._wait_again = wait_again

    def drained(self, request: PoolRequest, report: Drained) -> None:
        """A rank writes nothing more to decode for the task."""
        request.advance(Event.DRAINED)
        request.uncertain = request.uncertain or report.uncertain
        if not (request.recalled or request.needs_no_more_of(report.instance)):
            request.error = request.error or report.error
        request.drained_s = max(report.at_s, request.drained_s or report.at_s)
        request.drained.add((report.instance, report.tp_rank))
        self._go_on(request)

    def released(self, request: PoolRequest, instance: int, *, joined: bool = False) -> None:
        """An instance freed the task's slots; ``joined``: all but home's, which decodes it."""
        request.advance(Event.RELEASED)
        request.joined = request.joined or joined
        request.released.add(instance)
        self._go_on(request)

    def gone(self, request: PoolRequest, instance: int) -> None:
        """An instance of its plan writes nothing more and holds nothing: its process has ended.

        Or it was never sent into a chunk of the request, and was given up.
        """
        assert request.plan is not None
        request.drained.update((instance, rank) for rank in range(self._tp_size))
        request.released.add(instance)
        if instance == request.plan.home:
            request.joined = False
        self._go_on(request)

    def home_ended(self, request: PoolRequest) -> None:
        """The process that alone had a request has ended, which is to be computed anew."""
        request.advance(Event.RECALLED)
        self._wait_again(request)

    def decode_ended(self, request: PoolRequest, error: str) -> None:
        """Home's own scheduler is done with a request, and has answered its client."""
        before = request.advance(Event.DECODE_ENDED)
        # What went wrong at other members after home had all KV does not count, unless it was told.
        told = request.aborted or (request.answered and not request.output.complete)
        request.error = error or (request.error if told else "")
        request.decoded = request.answered = True
        request.recalled = False
        if before is Phase.DECODING:
            self._endings.over(request)

    def has_drained(self, request: PoolRequest, instance: int) -> bool:
        """Whether all ranks of an instance have."""
        return {(instance, rank) for rank in range(self._tp_size)} <= request.drained

    def _go_on(self, request: PoolRequest) -> None:
        """Take the next step, if all instances of the plan have come so far."""
        assert request.plan is not None
        members = request.plan.instances
        if request.phase is Phase.DRAINING and all(self.has_drained(request, i) for i in members):
            request.advance(Event.ALL_DRAINED)
            self._leave_lane(request)
            if not request.recalled:
                self._tell_decode(request)
            self._effects.release(request)
        if request.phase is Phase.RELEASING and request.released >= set(members):
            if request.recalled:
                request.advance(Event.RECALLED)
                self._wait_again(request)
            elif request.joined and not request.decoded:
                request.advance(Event.JOINED)
                self._ledger.keep_only(request.seq, request.plan.home)
            else:
                request.advance(Event.ALL_RELEASED)
                self._endings.over(request)

    def _tell_decode(self, request: PoolRequest) -> None:
        self._rooms.settle(request)
        # Decode may be done already and use the number again while slots are being freed.
        self._rooms.leave(request)

    def end_recall(self, request: PoolRequest) -> None:
        """A request ends that was to get another plan; why is in its ``error``."""
        if not request.recalled:
            return
        request.recalled = False
        if request.phase is Phase.RELEASING:
            # Its instances free their slots and answer nobody.
            self._endings.answer(request, request.status, request.error)
            self._tell_decode(request)
