"""Control messages that wait until no chunk of the pool runs, and what may start meanwhile.

A chunk's members must all run on one set of weights, and on memory that stays theirs. Each instance
looks at its messages between its own forwards, and that says nothing of its partners. So what
changes weights, memory or cache waits here, and is forwarded at a moment at which no chunk runs
anywhere. Orders that are sent afterwards lie behind it in every instance's queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Needs(Enum):
    """What must hold when a control message is forwarded."""

    NOTHING = "nothing"
    NO_CHUNK = "no chunk runs"
    EMPTY = "no instance holds KV of a request"


@dataclass(frozen=True, slots=True)
class Control(Generic[Message]):
    """A control message.

    Attributes:
        message: what is forwarded to the instances.
        needs: what must hold then.
        closes: reasons for which the pool starts nothing from then on.
        opens: reasons that are over with it.
    """

    message: Message
    needs: Needs = Needs.NOTHING
    closes: frozenset[str] = frozenset()
    opens: frozenset[str] = frozenset()


class QuietGate(Generic[Message]):
    """Keeps control messages back in their order, and says what may start. Pure bookkeeping."""

    def __init__(self) -> None:
        self._waiting: deque[Control[Message]] = deque()
        self._closed: set[str] = set()

    @property
    def closed(self) -> frozenset[str]:
        """For which reasons the pool starts nothing; empty while it is open."""
        return frozenset(self._closed)

    @property
    def may_start(self) -> bool:
        """Whether a chunk may start.

        Chunks of tasks that hold KV go on while a message waits for the pool to become empty.
        """
        waits = bool(self._waiting) and self._waiting[0].needs is Needs.NO_CHUNK
        return not self._closed and not waits

    @property
    def may_bind(self) -> bool:
        """Whether a request may get its plan, and with it KV slots."""
        return not self._closed and all(c.needs is not Needs.EMPTY for c in self._waiting)

    def submit(self, control: Control[Message]) -> None:
        """Take a message. One that opens the pool and needs nothing goes ahead of all others.

        It also takes back those that wait to close the pool for the same reasons.
        """
        if control.needs is not Needs.NOTHING:
            self._waiting.append(control)
            return
        if control.opens:
            kept = (c for c in self._waiting if not (c.closes and c.closes <= control.opens))
            self._waiting = deque(kept)
        self._waiting.appendleft(control)

    def due(self, *, running: bool, holding: bool) -> list[Message]:
        """Take out the messages whose time has come, in order.

        Args:
            running: a chunk is inside a forward.
            holding: an instance holds KV of a request; true while a chunk runs.
        """
        found: list[Message] = []
        while self._waiting:
            head = self._waiting[0]
            if (head.needs is Needs.NO_CHUNK and running) or (
                head.needs is Needs.EMPTY and (running or holding)
            ):
                break
            self._waiting.popleft()
            self._closed = (self._closed | head.closes) - head.opens
            found.append(head.message)
        return found

    def withdraw(self, kind: type) -> Message | None:
        """Take out the first message, if it is of a kind and waits for what cannot come about.

        While the pool starts nothing, requests that hold KV keep it.
        """
        if not self._closed or not self._waiting:
            return None
        head = self._waiting[0]
        if head.needs is not Needs.EMPTY or not isinstance(head.message, kind):
            return None
        return self._waiting.popleft().message
