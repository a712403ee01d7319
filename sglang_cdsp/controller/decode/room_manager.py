"""Which request uses which bootstrap room, and what decode is told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from sglang_cdsp.controller.decode.rooms import RoomMessage, Rooms
from sglang_cdsp.controller.decode.servers import RELEASE_S
from sglang_cdsp.controller.decode.unconfirmed import Unconfirmed
from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import AbortTarget, PoolRequest

# How long after decode's last word about a room of two requests it is failed: decode keeps its
# state by room, so both of its requests should be there to hear it.
SHARED_ROOM_PAUSE_S = 1.0
# When, after a room failed whose pages decode has not named, all decode servers hear of it. A
# decode server names no pages while its KV cache is full: its client should not wait for that.
ANNOUNCED_AFTER_S = (1.0, 2.0, 3.5)
# How long after the last word about it a shared room stays out of use.
SHARED_FOR_S = 30.0
# How long decode's pages are taken to be written to after a write whose end cannot be known: stock
# decode waits as long for an acknowledgement.
UNCERTAIN_FOR_S = RELEASE_S


@dataclass
class _Shared:
    """A room of two requests: when decode is to hear of it, and until when it is remembered."""

    due_s: float | None
    until_s: float


class RoomManager:
    """Gives rooms to requests and tells decode how they ended.

    A request without a room needs none of this.
    """

    def __init__(
        self,
        rooms: Rooms,
        effects: Effects,
        clock: Callable[[], float],
        release_s: float = RELEASE_S,
    ) -> None:
        """``clock``: monotonic seconds; ``release_s``: see ``DecodeServers``."""
        self._unconfirmed = Unconfirmed(release_s, clock)
        self._rooms = rooms
        self._effects = effects
        self._clock = clock
        self._users: dict[int, PoolRequest] = {}
        self._shared: dict[int, _Shared] = {}
        self._told: dict[int, float] = {}  # failed rooms, and when decode heard of it
        self._untold: dict[int, list[float]] = {}  # failed without pages: when decode is told
        self._acks: list[tuple[float, int, AbortTarget]] = []  # due later, see ``given_up``
        self._uncertain: dict[int, float] = {}  # rooms that may be written to, and until when
        self._held: list[tuple[int, AbortTarget]] = []  # acknowledgements that wait for that

    def user(self, room: int | None) -> PoolRequest | None:
        """The request that has the room."""
        return self._users.get(room) if room is not None else None

    @property
    def users(self) -> dict[int, PoolRequest]:
        """The requests that have a room, by room."""
        return dict(self._users)

    def messages(self, room: int) -> list[RoomMessage]:
        """What decode has said about a room's pages."""
        return self._rooms.messages(room)

    def known(self, request: PoolRequest) -> bool:
        """Whether decode's pages, if there will be any, are complete."""
        return request.room is None or self._rooms.complete(request.room)

    # -- intake ---------------------------------------------------------------------------

    def claim(self, request: PoolRequest) -> str:
        """Give a request its room; "" or why it cannot have it."""
        room = request.room
        if room is None:
            return ""
        if room in self._users or room in self._shared:
            return self._share(room)
        if self._rooms.given_up(room):
            return "decode gave the request up before it arrived here"
        # An acknowledgement that came late would pass for one of this request's own abort.
        self._acknowledge(lambda due_s, other: other == room)
        # Decode's own time-out has to free pages that may still be written to.
        self._held = [(other, target) for other, target in self._held if other != room]
        self._unconfirmed.forget(room)
        self._uncertain.pop(room, None)
        self._rooms.prune(set(self._users))
        self._rooms.readmit(room)
        self._told.pop(room, None)
        self._untold.pop(room, None)
        self._users[room] = request
        return ""

    def turn_away(self, request: PoolRequest, reason: str) -> None:
        """A request was refused; decode hears it now, or as soon as it names pages."""
        room = request.room
        if room is not None and room not in self._users:
            self._rooms.reject(room, reason, request.status)
            if self._rooms.complete(room):
                self._fail(room, reason)
            else:
                self._announce_later(room)

    def named(self, room: int, message: RoomMessage) -> bool:
        """Decode named pages; False if it did so before for another request of its own."""
        first = self._rooms.add(room, message)
        # Who names pages after it heard of a failure may do so for several requests: `n` samples.
        if not first or room in self._shared or room in self._told:
            self._share(room)
        if room not in self._users and self._rooms.complete(room):
            reason = self._rooms.rejection(room)
            if reason is not None:
                self._fail(room, reason)
        return first

    def abort_asked(self, room: int, target: AbortTarget) -> None:
        """Decode gave a room up, and waits to hear that its pages are safe."""
        self._unconfirmed.asked(room, target)

    def given_up(self, room: int, target: AbortTarget | None) -> None:
        """Decode left a room that no request has; others of its requests may still be there.

        Decode forgets all about a room once its abort is acknowledged, and no word about the room
        reaches its other requests any more. Where it may have such, they hear of their end first.
        """
        self._untold.pop(room, None)
        if self._heard(room):
            self._rooms.give_up(room)
        if target is not None and self._may_be_written_to(room):
            self._held.append((room, target))
        elif target is not None and (room in self._shared or room in self._told):
            self._acks.append((self._clock() + 2 * SHARED_ROOM_PAUSE_S, room, target))
        elif target is not None:
            self._ack(room, target)

    def _ack(self, room: int, target: AbortTarget) -> None:
        self._unconfirmed.told(room, target)
        self._effects.ack_abort(room, target)

    def _acknowledge(self, due: Callable[[float, int], bool]) -> None:
        """Send the acknowledgements that are ``due(due_s, room)``."""
        acks, self._acks = self._acks, []
        for due_s, room, target in acks:
            if due(due_s, room):
                self._ack(room, target)
            else:
                self._acks.append((due_s, room, target))

    def _may_be_written_to(self, room: int) -> bool:
        """Whether something of a write that failed may still arrive in a room's pages."""
        until_s = self._uncertain.get(room)
        return until_s is not None and self._clock() < until_s

    def rank_gone(self, host: str, port: int) -> None:
        """A decode rank can be reached no longer: it waits for no acknowledgement, or is dead.

        Where only its connection broke, its own time-out frees its pages: a word sent now would
        come with the next connection, too early.
        """
        self._held = [
            (room, target)
            for room, target in self._held
            if (target.host, target.port) != (host, port)
        ]
        self._unconfirmed.gone(host, port)

    def _end_uncertainty(self, now_s: float) -> None:
        """Acknowledge what nothing can arrive at any more."""
        held, self._held = self._held, []
        for room, target in held:
            if self._may_be_written_to(room):
                self._held.append((room, target))
            else:
                self._ack(room, target)
        for room in [r for r, until_s in self._uncertain.items() if until_s <= now_s]:
            del self._uncertain[room]

    def _heard(self, room: int) -> bool:
        """Whether decode will hear nothing more about a room's failure."""
        shared = self._shared.get(room)
        return shared is None or shared.due_s is None

    def _taken_in(self, room: int, now_s: float) -> bool:
        """Whether all of decode's requests in a room should have ended by what it heard.

        An acknowledgement that overtakes that word makes stock decode forget the room's state and
        then ask for it, which ends the server.
        """
        told_s = self._told.get(room)
        return self._heard(room) and (told_s is None or told_s + SHARED_ROOM_PAUSE_S <= now_s)

    def without_pages(self, patience_s: Callable[[int], float]) -> list[PoolRequest]:
        """Requests that decode has not named pages for in the time that such a prompt has."""
        now_s = self._clock()
        waiting = (e for e in self._users.values() if e.phase is Phase.ARRIVED)
        return [
            request for request in waiting if now_s - request.arrival_s > patience_s(request.tokens)
        ]

    # -- ends -----------------------------------------------------------------------------

    def settle(self, request: PoolRequest) -> None:
        """Tell decode how a room ended, now that nothing of ours is in flight."""
        room = request.room
        if room is None:
            return
        if request.uncertain:
            self._uncertain[room] = self._clock() + UNCERTAIN_FOR_S
        for target in request.abort_targets:
            if self._may_be_written_to(room):
                self._held.append((room, target))
            else:
                self._ack(room, target)
        if request.error:
            # Remembered too: a second decode request in the same room may name its pages later.
            self._rooms.reject(room, request.error, request.status)
            if room in self._shared:
                self._share(room)
            else:
                self._tell(room, request.error)
            if not self.known(request) and not request.abort_targets:
                self._announce_later(room)
        else:
            self._effects.finish_room(room)

    def leave(self, request: PoolRequest) -> None:
        """The room is settled; its number is free."""
        if request.room is None or self._users.get(request.room) is not request:
            return
        del self._users[request.room]
        if request.one_instance:
            self._unconfirmed.forget(request.room)  # its instance tells decode
        if request.room not in self._shared:
            self._rooms.close(request.room)

    def _fail(self, room: int, reason: str) -> None:
        if room not in self._shared:
            self._tell(room, reason)
            self._rooms.forget(room)

    def _tell(self, room: int, reason: str) -> None:
        self._effects.fail_room(room, reason)
        if self._rooms.messages(room):
            self._told[room] = self._clock()

    def _announce_later(self, room: int) -> None:
        now_s = self._clock()
        self._untold[room] = [now_s + pause_s for pause_s in ANNOUNCED_AFTER_S]

    def _announce(self, now_s: float) -> None:
        """Tell all decode servers of the failed rooms whose pages nobody has named."""
        for room, due in list(self._untold.items()):
            reason = self._rooms.rejection(room)
            if reason is None or room in self._told or not self._heard(room):
                due.clear()
            elif due[0] <= now_s:
                due.pop(0)
                self._effects.announce_failure(room, reason)
            if not due:
                del self._untold[room]

    # -- rooms that two requests use ------------------------------------------------------

    def _share(self, room: int) -> str:
        """Remember that two requests use a room, and let decode hear of it a moment later."""
        now_s = self._clock()
        due_s = now_s + SHARED_ROOM_PAUSE_S if self._rooms.messages(room) else None
        self._shared[room] = _Shared(due_s, now_s + SHARED_FOR_S)
        return shared_room(room)

    def tell(self) -> None:
        """Tell decode whatever it is time to tell: failures of shared rooms and of others."""
        now_s = self._clock()
        for room, shared in list(self._shared.items()):
            if room in self._users:
                continue
            if shared.due_s is not None and shared.due_s <= now_s:
                shared.due_s = None
                reason = self._rooms.rejection(room) or shared_room(room)
                self._rooms.reject(room, reason, HTTPStatus.BAD_REQUEST)
                self._tell(room, reason)
                self._rooms.forget(room)
            elif shared.due_s is None and shared.until_s <= now_s:
                del self._shared[room]
        self._announce(now_s)
        self._acknowledge(lambda due_s, room: due_s <= now_s and self._taken_in(room, now_s))
        for room in [r for r, told_s in self._told.items() if told_s + SHARED_FOR_S <= now_s]:
            del self._told[room]
        self._end_uncertainty(now_s)
        self._unconfirmed.warn(self.user)


def shared_room(room: int) -> str:
    """What both requests of a room are told."""
    return f"bootstrap room {room} is used by two requests; use a new room number"
