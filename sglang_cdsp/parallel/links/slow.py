"""Links whose blocks leave late, for tests of what a slow wire costs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sglang_cdsp.parallel.links.types import Event, Header, Links


@dataclass(frozen=True)
class _Held:
    """A write that has not left yet."""

    due_s: float
    seat: int
    slot: int
    header: Header
    block: torch.Tensor


class SlowLinks:
    """Other links, with a delay before each block; see ``types.Links``.

    Blocks leave in the order in which they were written. Credits are not delayed. For tensors in
    host memory: a block is read when it leaves, after the stream that wrote it may have gone on.
    """

    def __init__(
        self,
        inner: Links,
        delay_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Carry blocks over ``inner``; ``delay_s`` says how late one leaves that is written now."""
        self._inner = inner
        self._delay_s = delay_s
        self._clock = clock
        self._held: deque[_Held] = deque()

    @property
    def seat(self) -> int:
        return self._inner.seat

    @property
    def incarnation(self) -> int:
        return self._inner.incarnation

    def invite(self, seat: int) -> bytes:
        return self._inner.invite(seat)

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        self._forget(seat)
        self._inner.join(seat, incarnation, invitation)

    def drop(self, seat: int) -> None:
        self._forget(seat)
        self._inner.drop(seat)

    def write(self, seat: int, slot: int, header: Header, block: torch.Tensor) -> None:
        self._held.append(_Held(self._clock() + self._delay_s(), seat, slot, header, block))
        self._release()

    def credit(self, seat: int, slot: int, number: int) -> None:
        self._inner.credit(seat, slot, number)

    def poll(self) -> list[Event]:
        self._release()
        return self._inner.poll()

    def inbound(self, seat: int, slot: int) -> torch.Tensor:
        return self._inner.inbound(seat, slot)

    def close(self) -> None:
        self._held.clear()
        self._inner.close()

    def _release(self) -> None:
        """Let go what is due; one that is not holds back those behind it, as a wire does."""
        now_s = self._clock()
        while self._held and self._held[0].due_s <= now_s:
            held = self._held.popleft()
            self._inner.write(held.seat, held.slot, held.header, held.block)

    def _forget(self, seat: int) -> None:
        self._held = deque(held for held in self._held if held.seat != seat)
