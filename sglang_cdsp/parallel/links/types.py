"""What links are made of: their shape, what a piece says of itself, events, and the protocols."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sglang_cdsp.parallel.errors import LinkError

GiveWay = Callable[[Callable[[], bool] | None], None]
"""Lets others run: called with a readiness function when something is waited for, and with None at
a mere boundary. It may return before the function says True; the caller asks again."""


@dataclass(frozen=True)
class LinkShape:
    """How the inbound area of a pair of instances is divided; the same at all of them.

    Attributes:
        lanes: exchanges that can be under way side by side without waiting for each other.
        depth: slots of one lane, for one pair and direction.
        slot_bytes: bytes of a slot; a longer message is cut into pieces of this size.

    Raises:
        LinkError: a number is not positive.
    """

    lanes: int
    depth: int
    slot_bytes: int

    def __post_init__(self) -> None:
        if min(self.lanes, self.depth, self.slot_bytes) < 1:
            raise LinkError(f"lanes, depth and slot_bytes must be at least 1, not {self}")

    @property
    def slots(self) -> int:
        """Slots of an area. Lane i owns ``[i * depth, (i + 1) * depth)``."""
        return self.lanes * self.depth


@dataclass(frozen=True)
class Message:
    """A contiguous tensor to send to, or to fill from, instance ``peer``.

    Both sides post the messages of a pair of instances in the same order, with the same tags.
    """

    tensor: torch.Tensor
    peer: int
    tag: int = 0


_FORMAT = struct.Struct("<QQQqQQq")


@dataclass(frozen=True)
class Header:
    """What a piece says of itself.

    Attributes:
        number: of the piece, counted for its pair and lane from 1 on, whatever the serial.
        serial: which use of the lane it belongs to.
        message: number of its message, counted for its pair and serial from 1 on.
        tag: the message's tag.
        total: bytes of the message.
        size: bytes of the piece.
        note: the caller's own check: layer and step, say.
    """

    number: int
    serial: int
    message: int
    tag: int
    total: int
    size: int
    note: int = 0

    def packed(self) -> bytes:
        """The header as ``PACKED_BYTES`` bytes, its number first."""
        return _FORMAT.pack(
            self.number, self.serial, self.message, self.tag, self.total, self.size, self.note
        )

    @classmethod
    def unpacked(cls, data: bytes) -> Header:
        """Read what ``packed`` wrote."""
        return cls(*_FORMAT.unpack(data))


PACKED_BYTES = _FORMAT.size


@dataclass(frozen=True)
class Arrived:
    """A piece from ``seat`` lies in ``slot`` of its inbound area, all of it."""

    seat: int
    slot: int
    header: Header


@dataclass(frozen=True)
class Credited:
    """``seat`` has read piece ``number``: its slot may be written again."""

    seat: int
    slot: int
    number: int


@dataclass(frozen=True)
class Sent:
    """Piece ``number`` to ``seat`` has left: the block that it was copied from is free."""

    seat: int
    slot: int
    number: int


@dataclass(frozen=True)
class Lost:
    """The link to ``seat`` broke; nothing more goes to it or comes from it."""

    seat: int
    why: str


Event = Arrived | Credited | Sent | Lost


class Links(Protocol):
    """One process's links to all others. Used by one thread; nothing waits.

    Whoever receives makes the area that is written to. Areas belong to a pair of processes: a seat
    whose process is replaced gets new ones, so nothing of a former life can reach them.

    Attributes:
        seat: this instance's number.
        incarnation: which life of the seat this process is.
    """

    @property
    def seat(self) -> int: ...

    @property
    def incarnation(self) -> int: ...

    def invite(self, seat: int) -> bytes:
        """Make a fresh inbound area for the next process of ``seat``; return what it needs to join.

        It says, too, that the seat's former process, if there was one, has ended.
        """

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        """From now on this process of ``seat`` is the partner. An earlier one is dropped first.

        Args:
            seat, incarnation: the partner.
            invitation: what its ``invite`` returned for this seat.

        Raises:
            LinkError: the invitation does not lead to its area, or this side has not invited it.
        """

    def drop(self, seat: int) -> None:
        """Forget the partner; what is in flight from or to it is never heard of again."""

    def write(self, seat: int, slot: int, header: Header, block: torch.Tensor) -> None:
        """Start writing ``block``, uint8 ``[header.size]``, into a slot that is free.

        The partner sees block and header together, or neither. ``Sent`` says that it has left.
        """

    def credit(self, seat: int, slot: int, number: int) -> None:
        """Give a slot back to its sender, once what the current stream does so far has ended."""

    def poll(self) -> list[Event]:
        """Move everything on, and return what has happened since."""

    def inbound(self, seat: int, slot: int) -> torch.Tensor:
        """A slot that ``seat`` writes to, as uint8 ``[slot_bytes]``: read it between Arrived and
        credit."""

    def close(self) -> None:
        """Drop all partners."""


class Waitable(Protocol):
    """Something under way that can be waited for."""

    def wait(self) -> None:
        """Return when it has ended.

        Raises:
            LinkError: it failed.
        """


class Exchanger(Protocol):
    """What attention and moves need of links."""

    def exchange(
        self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0
    ) -> Waitable:
        """Start all of ``sends`` and ``recvs``; empty tensors are left out on both sides.

        Args:
            note: what both sides must say alike of what they exchange: layer and step, say.
        """
