"""What decode has said about bootstrap rooms, per decode rank."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus

# How long pages are kept for a request that has not come: twice decode's own wait.
UNCLAIMED_FOR_S = 600.0
# How long a room that is over is remembered: decode's own wait for a prefill server.
REMEMBERED_FOR_S = 300.0
FAILED = HTTPStatus.INTERNAL_SERVER_ERROR


@dataclass(frozen=True)
class RoomMessage:
    """Destination pages from one decode agent.

    Attributes:
        tp_rank: prefill rank that it is meant for.
        agent: name of decode's transfer agent.
        required: agents that will write this room at this rank.
        host, port: where that decode rank listens.
        frames: the message as it came.
    """

    tp_rank: int
    agent: str
    required: int
    host: str
    port: int
    frames: list[bytes]


class Fate(Enum):
    """How a room ended for the pool."""

    CLOSED = auto()  # its request ended
    REJECTED = auto()  # its request was refused before decode's pages were known
    GIVEN_UP = auto()  # decode left before its request arrived


@dataclass(frozen=True)
class _Past:
    until_s: float
    fate: Fate
    reason: str
    status: HTTPStatus


@dataclass
class Rooms:
    """Messages by room, and for a while how each room ended.

    Attributes:
        tp_size: prefill ranks that each room's pages must be known for.
    """

    tp_size: int
    _messages: dict[int, dict[tuple[int, str], RoomMessage]] = field(default_factory=dict)
    _since: dict[int, float] = field(default_factory=dict)
    _past: dict[int, _Past] = field(default_factory=dict)

    def add(self, room: int, message: RoomMessage) -> bool:
        """Take in one message; False if that agent named other pages for the room before."""
        self._since.setdefault(room, time.monotonic())
        messages = self._messages.setdefault(room, {})
        key = (message.tp_rank, message.agent)
        known = messages.get(key)
        messages[key] = message
        return known is None or known.frames == message.frames

    def complete(self, room: int) -> bool:
        """Whether every prefill rank's pages are known."""
        messages = self._messages.get(room, {}).values()
        for rank in range(self.tp_size):
            mine = [m for m in messages if m.tp_rank == rank]
            if not mine or len(mine) < mine[0].required:
                return False
        return True

    def messages(self, room: int) -> list[RoomMessage]:
        """All messages of a room, in order of arrival."""
        return list(self._messages.get(room, {}).values())

    def forget(self, room: int) -> None:
        """Drop decode's pages of a room."""
        self._messages.pop(room, None)
        self._since.pop(room, None)

    def prune(self, claimed: Collection[int]) -> None:
        """Drop pages that waited too long for a request; ``claimed`` rooms have one."""
        limit = time.monotonic() - UNCLAIMED_FOR_S
        for room in [r for r, at_s in self._since.items() if at_s < limit and r not in claimed]:
            self.forget(room)

    def close(self, room: int) -> None:
        """The room's request ended; a rejection stays one."""
        self.forget(room)
        if self.rejection(room) is None:
            self._remember(room, Fate.CLOSED, "")

    def reject(self, room: int, reason: str, status: HTTPStatus = FAILED) -> None:
        """Remember that a room's request was refused, for pages that arrive later.

        ``status`` is the one that its own client was told.
        """
        self._remember(room, Fate.REJECTED, reason, status)

    def give_up(self, room: int) -> None:
        """Decode left a room without a request: its pages are no longer ours to write to.

        The request may still be on its way, unless it has been here already.
        """
        self.forget(room)
        if self._fate(room) is None:
            self._remember(room, Fate.GIVEN_UP, "")

    def rejection(self, room: int) -> str | None:
        """Why a room was refused; None if it was not, or long ago."""
        return self._past[room].reason if self._fate(room) is Fate.REJECTED else None

    def rejection_status(self, room: int) -> HTTPStatus:
        """With which status a room was refused; that of a failure if it was not, or long ago."""
        return self._past[room].status if self._fate(room) is Fate.REJECTED else FAILED

    def given_up(self, room: int) -> bool:
        """Whether decode left before the room's request came."""
        return self._fate(room) is Fate.GIVEN_UP

    def readmit(self, room: int) -> None:
        """A new request uses the room's number."""
        self._past.pop(room, None)

    def _fate(self, room: int) -> Fate | None:
        past = self._past.get(room)
        return past.fate if past and past.until_s > time.monotonic() else None

    def _remember(self, room: int, fate: Fate, reason: str, status: HTTPStatus = FAILED) -> None:
        now = time.monotonic()
        self._past.pop(room, None)  # so that the oldest come first
        while self._past and next(iter(self._past.values())).until_s <= now:
            del self._past[next(iter(self._past))]
        self._past[room] = _Past(now + REMEMBERED_FOR_S, fate, reason, status)
