"""Links among threads of one process, for tests: plain memory and one lock."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sglang_cdsp.parallel.links.partners import Parties, Partners
from sglang_cdsp.parallel.links.types import Arrived, Credited, Event, Header, LinkShape, Sent

Hook = Callable[[int, Sequence[Event]], tuple[list[Event], list[Event]]]
"""``hook(seat, events)`` at each poll of ``seat``: which events it sees, in what order, and which
ones stay for a later poll."""


def at_once(seat: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """The hook that delays nothing."""
    return list(events), []


@dataclass
class _Area:
    """Where one sender writes for one receiver; both only under the switchboard's lock."""

    data: torch.Tensor
    arrived: list[tuple[int, Header]] = field(default_factory=list)
    credited: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Switchboard:
    """Where the links of one process find each other's areas."""

    hook: Hook = at_once
    lock: threading.Lock = field(default_factory=threading.Lock)
    areas: dict[int, _Area] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)


class ThreadLinks(Partners[int, tuple[_Area, _Area]]):
    """``Links`` over a switchboard, see ``types.Links``."""

    def __init__(self, board: Switchboard, seat: int, incarnation: int, shape: LinkShape) -> None:
        super().__init__(seat, incarnation)
        self._board = board
        self._shape = shape
        self._waiting: list[Event] = []

    def invite(self, seat: int) -> bytes:
        area = _Area(torch.zeros(self._shape.slots, self._shape.slot_bytes, dtype=torch.uint8))
        with self._board.lock:
            number = next(self._board.numbers)
            self._board.areas[number] = area
        self._invited[seat] = number
        return f"{self.seat}.{self.incarnation}.{seat}.{number}".encode()

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        *names, number = (int(part) for part in invitation.split(b"."))
        self._require_invited(seat)
        self._require_parties(Parties(*names), seat, incarnation)
        mine = self._invited.pop(seat)
        self._forget(seat)
        with self._board.lock:
            self._partners[seat] = (self._board.areas[mine], self._board.areas[number])

    def drop(self, seat: int) -> None:
        self._invited.pop(seat, None)
        self._forget(seat)

    def _forget(self, seat: int) -> None:
        self._partners.pop(seat, None)
        self._waiting = [event for event in self._waiting if event.seat != seat]

    def write(self, seat: int, slot: int, header: Header, block: torch.Tensor) -> None:
        _, outbound = self._partner(seat)
        with self._board.lock:
            outbound.data[slot, : header.size].copy_(block)
            outbound.arrived.append((slot, header))
        self._waiting.append(Sent(seat, slot, header.number))

    def credit(self, seat: int, slot: int, number: int) -> None:
        inbound, _ = self._partner(seat)
        with self._board.lock:
            inbound.credited.append((slot, number))

    def poll(self) -> list[Event]:
        with self._board.lock:
            for seat, (inbound, outbound) in self._partners.items():
                self._waiting += [Arrived(seat, *arrived) for arrived in inbound.arrived]
                self._waiting += [Credited(seat, *credited) for credited in outbound.credited]
                inbound.arrived.clear()
                outbound.credited.clear()
        events, self._waiting = self._board.hook(self.seat, self._waiting)
        return events

    def inbound(self, seat: int, slot: int) -> torch.Tensor:
        return self._partner(seat)[0].data[slot]
