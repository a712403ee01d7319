"""The memory of one direction of a shared-memory link: who writes which bytes of it.

::

    0     name page: what this area is (written once, by its maker), and "mapped" (by the sender)
    4096  two counters: of pieces (sender), of credits (receiver), each on a cache line of its own
          a record of 64 bytes for each slot: the piece's number, then the rest of its header
          a word for each slot: the number of the last piece that was given back (receiver)
          the slots
"""

from __future__ import annotations

import mmap
import platform
import struct
import threading
from dataclasses import dataclass

import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.types import PACKED_BYTES, Header, LinkShape

_PAGE = 4096
_LINE = 64
_WORD = 8
_NAME = struct.Struct("<8s16sqqqQQQ")
_MAGIC = b"cdsplink"
_MAPPED = (_PAGE - _LINE) // _WORD
_PIECES, _CREDITS = _PAGE // _WORD, (_PAGE + _LINE) // _WORD
_RECORDS = _PAGE + 2 * _LINE
# x86 makes stores visible in program order and lets no load overtake an earlier one (a string
# instruction's own stores may mix, but end before the next store), so an aligned word that is
# written last is enough there. Elsewhere a release and the acquire after it are not reordered:
# taking and giving back a lock twice makes both.
_ORDERED = platform.machine() in ("x86_64", "AMD64", "i686")


@dataclass(frozen=True)
class AreaName:
    """What an area is. The nonce tells it from another file that took its number."""

    nonce: bytes
    receiver: int
    incarnation: int
    sender: int
    shape: LinkShape

    def packed(self) -> bytes:
        shape = self.shape
        return _NAME.pack(
            _MAGIC, self.nonce, self.receiver, self.incarnation, self.sender,
            shape.lanes, shape.depth, shape.slot_bytes,
        )  # fmt: skip

    @classmethod
    def unpacked(cls, data: bytes) -> AreaName | None:
        """Read what ``packed`` wrote; None for anything else."""
        if len(data) < _NAME.size:
            return None
        magic, nonce, receiver, incarnation, sender, *shape = _NAME.unpack(data[: _NAME.size])
        if magic != _MAGIC or min(shape) < 1:
            return None
        return cls(nonce, receiver, incarnation, sender, LinkShape(*shape))


class Area:
    """One area, mapped. The file behind it lives as long as somebody has it mapped or open."""

    def __init__(self, fd: int, shape: LinkShape) -> None:
        """Map the area that ``fd`` is; the caller keeps and closes ``fd``."""
        self._shape = shape
        self._stride = _up(shape.slot_bytes, _LINE)
        self._credit_words = (_RECORDS + shape.slots * _LINE) // _WORD
        data = _up(_RECORDS + shape.slots * (_LINE + _WORD), _PAGE)
        self._memory = mmap.mmap(fd, area_bytes(shape))
        self._words = memoryview(self._memory).cast("Q")
        self._data = torch.frombuffer(
            self._memory, dtype=torch.uint8, offset=data, count=shape.slots * self._stride
        )
        self._lock = threading.Lock()
        self._pieces_seen = self._credits_seen = 0
        self._numbers = [0] * shape.slots
        self._given_back = [0] * shape.slots

    @property
    def name(self) -> AreaName | None:
        """What the area says that it is."""
        return AreaName.unpacked(self._memory[: _NAME.size])

    def set_name(self, name: AreaName) -> None:
        self._memory[: _NAME.size] = name.packed()

    @property
    def mapped(self) -> bool:
        """Whether the sender has mapped it, too."""
        return bool(self._words[_MAPPED])

    def set_mapped(self) -> None:
        self._words[_MAPPED] = 1

    def slot(self, slot: int) -> torch.Tensor:
        """A slot's bytes, uint8 ``[slot_bytes]``."""
        start = slot * self._stride
        return self._data[start : start + self._shape.slot_bytes]

    def write(self, slot: int, header: Header, block: torch.Tensor) -> None:
        """Put a piece into a slot: block and header, then the number that makes it seen."""
        self.slot(slot)[: block.numel()].copy_(block)
        record = _RECORDS + slot * _LINE
        packed = header.packed()
        self._memory[record + _WORD : record + PACKED_BYTES] = packed[_WORD:]
        self._fence()
        self._words[record // _WORD] = header.number
        self._fence()
        self._words[_PIECES] += 1

    def arrivals(self) -> list[tuple[int, Header]]:
        """Slots, with their headers, that were written since the last call."""
        pieces = self._words[_PIECES]
        if pieces == self._pieces_seen:
            return []
        self._fence()
        self._pieces_seen = pieces
        new: list[tuple[int, int]] = []
        for slot in range(self._shape.slots):
            number = self._words[(_RECORDS + slot * _LINE) // _WORD]
            if number != self._numbers[slot]:
                self._numbers[slot] = number
                new.append((slot, number))
        self._fence()
        return [(slot, self._header(slot, number)) for slot, number in new]

    def _header(self, slot: int, number: int) -> Header:
        record = _RECORDS + slot * _LINE
        rest = self._memory[record + _WORD : record + PACKED_BYTES]
        return Header.unpacked(struct.pack("<Q", number) + rest)

    def give_back(self, slot: int, number: int) -> None:
        """Let the sender write a slot again, whose piece was read."""
        self._fence()
        self._words[self._credit_words + slot] = number
        self._fence()
        self._words[_CREDITS] += 1

    def credits(self) -> list[tuple[int, int]]:
        """Slots, with their pieces' numbers, that were given back since the last call."""
        credits = self._words[_CREDITS]
        if credits == self._credits_seen:
            return []
        self._fence()
        self._credits_seen = credits
        new: list[tuple[int, int]] = []
        for slot in range(self._shape.slots):
            number = self._words[self._credit_words + slot]
            if number != self._given_back[slot]:
                self._given_back[slot] = number
                new.append((slot, number))
        self._fence()
        return new

    def _fence(self) -> None:
        if not _ORDERED:
            for _ in range(2):
                with self._lock:
                    pass


def area_bytes(shape: LinkShape) -> int:
    """Bytes of an area's file. Memory is taken only for pages that are written."""
    if shape.slots > 1 << 20:
        raise LinkError(f"{shape} has {shape.slots} slots: use at most {1 << 20}")
    head = _up(_RECORDS + shape.slots * (_LINE + _WORD), _PAGE)
    return head + _up(shape.slots * _up(shape.slot_bytes, _LINE), _PAGE)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
