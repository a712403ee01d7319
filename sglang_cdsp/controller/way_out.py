"""Plans that are over, computed or dropped: from the last writes to the last slot that is freed."""

from __future__ import annotations

from collections.abc import Callable

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.endings import Endings
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
        self._tp_size = tp_size
        self._leave_lane = leave_lane
        self._wait_again = wait_again

    def drained(self, request: PoolRequest, report: Drained) -> None:
        """A rank writes nothing more to decode for the task."""
        request.advance(Event.DRAINED)
        request.uncertain = request.uncertain or report.uncertain
        if not request.recalled:
            request.error = request.error or report.error
        request.drained_s = max(report.at_s, request.drained_s or report.at_s)
        request.drained.add((report.instance, report.tp_rank))
        self._go_on(request)

    def released(self, request: PoolRequest, instance: int) -> None:
        """An instance freed the task's slots."""
        request.advance(Event.RELEASED)
        request.released.add(instance)
        self._go_on(request)

    def gone(self, request: PoolRequest, instance: int) -> None:
        """An instance of its plan writes nothing more and holds nothing: its process has ended.

        Or it was never sent into a chunk of the request, and was given up.
        """
        request.drained.update((instance, rank) for rank in range(self._tp_size))
        request.released.add(instance)
        self._go_on(request)

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
