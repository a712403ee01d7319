"""What decode has said about bootstrap rooms, per decode rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# How long a rejected room is remembered: decode's own wait for a prefill server.
REJECTED_FOR_S = 300.0


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


@dataclass
class Rooms:
    """Messages by room, and the rooms that no request will ever come to.

    Attributes:
        tp_size: prefill ranks that each room's pages must be known for.
    """

    tp_size: int
    _messages: dict[int, dict[tuple[int, str], RoomMessage]] = field(default_factory=dict)
    _rejected: dict[int, tuple[float, str]] = field(default_factory=dict)

    def add(self, room: int, message: RoomMessage) -> None:
        """Take in one message."""
        self._messages.setdefault(room, {})[(message.tp_rank, message.agent)] = message

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
        """Drop what is known of a room."""
        self._messages.pop(room, None)

    def reject(self, room: int, reason: str) -> None:
        """Remember that a room's request was refused, for pages that arrive later."""
        now = time.monotonic()
        self._rejected = {r: v for r, v in self._rejected.items() if v[0] > now}
        self._rejected[room] = (now + REJECTED_FOR_S, reason)

    def rejection(self, room: int) -> str | None:
        """Why a room was refused; None if it was not, or long ago."""
        found = self._rejected.get(room)
        return found[1] if found and found[0] > time.monotonic() else None

    def readmit(self, room: int) -> None:
        """A new request uses the room's number."""
        self._rejected.pop(room, None)
