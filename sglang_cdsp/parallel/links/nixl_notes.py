"""What links over NIXL say beside their blocks: notifications, and the names of their agents."""

from __future__ import annotations

import re
import secrets
import struct

from sglang_cdsp.parallel.links.types import (
    PACKED_BYTES,
    Arrived,
    Credited,
    Event,
    Header,
)

_PIECE = struct.Struct(f"<cI{PACKED_BYTES}s")
_CREDIT = struct.Struct("<cIQ")
_NAME = re.compile(r"cdsp-(\d+)\.(\d+)-[0-9a-f]+")


def piece_note(slot: int, header: Header) -> bytes:
    """The notification of a block that has been written into ``slot``."""
    return _PIECE.pack(b"P", slot, header.packed())


def credit_note(slot: int, number: int) -> bytes:
    """The notification that piece ``number`` has been read from ``slot``."""
    return _CREDIT.pack(b"C", slot, number)


def event_of(seat: int, note: bytes) -> Event:
    """What a notification from ``seat`` says."""
    if note[:1] == b"C":
        _, slot, number = _CREDIT.unpack(note)
        return Credited(seat, slot, number)
    _, slot, packed = _PIECE.unpack(note)
    return Arrived(seat, slot, Header.unpacked(packed))


def agent_name(seat: int, incarnation: int) -> str:
    """A name for the agent of one process; no other agent has it."""
    return f"cdsp-{seat}.{incarnation}-{secrets.token_hex(4)}"


def process_of(name: str) -> tuple[int, int] | None:
    """Seat and incarnation in the name of a link's agent; None for another agent's."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None
