"""Messages between two instances on one lane, as pieces that fill slots in order."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sglang_cdsp.parallel.links.types import Header, Links, LinkShape, Message
from sglang_cdsp.parallel.links.work import Progress


@dataclass(eq=False)
class Part:
    """One message of an exchange, as it is being sent or received.

    Attributes:
        data: its bytes, uint8 ``[total]``; holds the tensor until the part has ended.
        serial, message, tag, note: see ``Header``.
        stream: the CUDA stream that was current when it was posted: it orders the copies.
        done: bytes that have left, or that have come.
        started: bytes whose sending has begun.
    """

    data: torch.Tensor
    peer: int
    serial: int
    message: int
    tag: int
    note: int
    progress: Progress
    stream: Any = None
    done: int = 0
    started: int = 0
    posted: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, message: Message, serial: int, number: int, note: int, progress: Progress) -> Part:
        """Make the part of an exchange that ``message`` is, the pair's ``number``-th."""
        tensor = message.tensor
        return cls(
            data=tensor.detach().view(-1).view(torch.uint8),
            peer=message.peer,
            serial=serial,
            message=number,
            tag=message.tag,
            note=note,
            progress=progress,
            stream=torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None,
        )

    @property
    def total(self) -> int:
        """Bytes of the message."""
        return self.data.numel()

    def described(self) -> dict[str, int | float]:
        """What it is and how far, for who wants to know what is waited for."""
        return {
            "instance": self.peer,
            "serial": self.serial,
            "tag": self.tag,
            "note": self.note,
            "bytes": self.total,
            "bytes_done": self.done,
            "seconds": time.monotonic() - self.posted,
        }

    def advance(self, size: int) -> None:
        """Count ``size`` more bytes as moved."""
        self.done += size
        if self.done == self.total:
            self.progress.left -= 1


def in_order_of(stream: Any) -> contextlib.AbstractContextManager[Any]:
    """A context in which ``stream`` is current; None changes nothing."""
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


@dataclass
class _Busy:
    """A slot of the partner that holds a piece: whose, and what has not been heard of it yet."""

    number: int
    part: Part
    size: int
    sent: bool = False
    credited: bool = False


class Outbox:
    """What goes to one instance on one lane."""

    def __init__(self, links: Links, seat: int, lane: int, shape: LinkShape) -> None:
        self._links, self._seat = links, seat
        self._first, self._slot_bytes = lane * shape.depth, shape.slot_bytes
        self._busy: list[_Busy | None] = [None] * shape.depth
        self._queue: deque[Part] = deque()
        self._next = 1

    @property
    def settled(self) -> bool:
        """Whether nothing is being written."""
        return all(busy is None or busy.sent for busy in self._busy)

    @property
    def waiting(self) -> list[Part]:
        """Messages that have not left, oldest first."""
        leaving = [busy.part for busy in self._busy if busy is not None and not busy.sent]
        parts = {id(part): part for part in (*leaving, *self._queue)}
        return sorted(parts.values(), key=lambda part: part.message)

    def add(self, part: Part) -> None:
        """Queue a message and write what there are slots for."""
        self._queue.append(part)
        self.pump()

    def pump(self) -> None:
        """Write as many pieces as slots are free, in order."""
        while self._queue:
            index = (self._next - 1) % len(self._busy)
            if self._busy[index] is not None:
                return
            part = self._queue[0]
            size = min(self._slot_bytes, part.total - part.started)
            header = Header(
                self._next, part.serial, part.message, part.tag, part.total, size, part.note
            )
            block = part.data[part.started : part.started + size]
            self._busy[index] = _Busy(self._next, part, size)
            self._next += 1
            part.started += size
            if part.started == part.total:
                self._queue.popleft()
            with in_order_of(part.stream):
                self._links.write(self._seat, self._first + index, header, block)

    def on_sent(self, slot: int, number: int) -> None:
        """A piece has left."""
        busy = self._busy[slot - self._first]
        if busy is not None and busy.number == number and not busy.sent:
            busy.sent = True
            busy.part.advance(busy.size)
            self._release(slot - self._first, busy)

    def on_credited(self, slot: int, number: int) -> None:
        """The partner gave a slot back; of an earlier piece that was known already."""
        busy = self._busy[slot - self._first]
        if busy is not None and busy.number == number:
            busy.credited = True
            self._release(slot - self._first, busy)

    def _release(self, index: int, busy: _Busy) -> None:
        if busy.sent and busy.credited:
            self._busy[index] = None
            self.pump()

    def clear(self) -> None:
        """Forget what has not been started."""
        self._queue.clear()


class Inbox:
    """What comes from one instance on one lane."""

    def __init__(self, links: Links, seat: int) -> None:
        self._links, self._seat = links, seat
        self._arrived: dict[int, tuple[int, Header]] = {}
        self._posted: deque[Part] = deque()
        self._next = 1

    @property
    def waiting(self) -> list[Part]:
        """Messages that have not come, oldest first."""
        return list(self._posted)

    def post(self, part: Part) -> None:
        """Expect a message."""
        self._posted.append(part)

    def on_arrived(self, slot: int, header: Header) -> None:
        """Remember a piece; its turn may not have come, whatever the link's order is."""
        if header.number >= self._next:
            self._arrived[header.number] = (slot, header)

    def clear(self) -> None:
        """Expect nothing any more."""
        self._posted.clear()

    def drain(self, stale: Callable[[int], bool]) -> str:
        """Take in what is expected, in order; return what is wrong with the next piece, or "".

        A piece that nobody expects yet stays in its slot. One of a serial that is ``stale`` is
        given back unread.
        """
        while self._next in self._arrived:
            slot, header = self._arrived[self._next]
            if stale(header.serial):
                self._links.credit(self._seat, slot, header.number)
            else:
                part = self._posted[0] if self._posted else None
                if part is None or part.serial != header.serial:
                    return ""
                wrong = _difference(part, header)
                if wrong:
                    return f"from instance {self._seat} {wrong}"
                self._take(part, slot, header)
            del self._arrived[self._next]
            self._next += 1
        return ""

    def _take(self, part: Part, slot: int, header: Header) -> None:
        into = part.data[part.done : part.done + header.size]
        with in_order_of(part.stream):
            # Not ``non_blocking``: a slot in host memory is given back at once, and may then be
            # written while a device still reads it. Device to device the host never waits.
            into.copy_(self._links.inbound(self._seat, slot)[: header.size])
            self._links.credit(self._seat, slot, header.number)
        part.advance(header.size)
        if part.done == part.total:
            self._posted.popleft()


def _difference(part: Part, header: Header) -> str:
    """What both sides say differently of a message, or ""."""
    mine = {"message": part.message, "tag": part.tag, "bytes": part.total, "note": part.note}
    theirs = {
        "message": header.message,
        "tag": header.tag,
        "bytes": header.total,
        "note": header.note,
    }
    if mine == theirs and part.done + header.size <= part.total:
        return ""
    return f"came {_words(theirs)}, while {_words(mine)} is expected"


def _words(names: dict[str, int]) -> str:
    return "(" + ", ".join(f"{name} {value}" for name, value in names.items()) + ")"
