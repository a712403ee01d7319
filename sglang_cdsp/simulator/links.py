"""KV on its way: the network between prefill and decode, shared max-min fairly.

A *transfer* is one chunk's KV: its shards leave all members of the chunk's group in equal parts
and in step, and arrive spread evenly over the receivers. Every sender and every receiver has a
bandwidth of its own; what lies between them is never the bottleneck. Transfers get max-min fair
rates: none could be faster without slowing one that is no faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.task import Task


@dataclass(slots=True, eq=False)
class Transfer:
    """One transfer under way. left: bytes still to go. rate: bytes per second now."""

    task: Task
    senders: Sequence[int]
    receivers: Sequence[int]
    left: float
    rate: float = 0.0


class Links:
    """All transfers under way; `arrived(now, task)` is called at the end of each."""

    def __init__(
        self,
        agenda: Agenda,
        send_bytes_per_s: float,
        receive_bytes_per_s: float,
        arrived: Callable[[float, Task], None],
    ) -> None:
        self._agenda, self._arrived = agenda, arrived
        self._send, self._receive = send_bytes_per_s, receive_bytes_per_s
        self._active: list[Transfer] = []
        self._since = 0.0
        self._next: Transfer | None = None
        self._version = 0

    def start(
        self, now: float, task: Task, size: float, senders: Sequence[int], receivers: Sequence[int]
    ) -> None:
        """Send `size` bytes; nothing to send arrives at once."""
        if size <= 0:
            self._arrived(now, task)
            return
        self._advance(now)
        self._active.append(Transfer(task, senders, receivers, size))
        self._share(now)

    def _advance(self, now: float) -> None:
        seconds = now - self._since
        for transfer in self._active:
            transfer.left -= transfer.rate * seconds
        self._since = now

    def _share(self, now: float) -> None:
        """New rates, and when the next transfer ends under them."""
        self._version += 1
        active = self._active
        if not active:
            return
        if len(active) == 1:
            only = active[0]
            only.rate = min(self._send * len(only.senders), self._receive * len(only.receivers))
        else:
            ends = [(t.senders, t.receivers) for t in active]
            rates = max_min_rates(ends, self._send, self._receive)
            for transfer, rate in zip(active, rates, strict=True):
                transfer.rate = rate
        self._next = min(active, key=lambda t: t.left / t.rate)
        due = now + max(0.0, self._next.left / self._next.rate)
        self._agenda.at(due, self._due, self._version)

    def _due(self, now: float, version: int) -> None:
        if version != self._version:
            return
        self._advance(now)
        first = self._next
        # Whatever would end within the clock's rounding ends now too.
        over = [t for t in self._active if t is first or t.left <= t.rate * 1e-9]
        self._active = [t for t in self._active if t not in over]
        self._share(now)
        for transfer in over:
            self._arrived(now, transfer.task)


def max_min_rates(
    transfers: Sequence[tuple[Sequence[int], Sequence[int]]],
    send_bytes_per_s: float,
    receive_bytes_per_s: float,
) -> list[float]:
    """Max-min fair rates (bytes/s) of transfers [(senders, receivers), ...].

    Progressive filling: all rates rise together until an end is full; the transfers through that
    end stay where they are, the others rise on. A transfer of rate r takes r / len(senders) at
    each sender and r / len(receivers) at each receiver.
    """
    users: dict[tuple[int, int], dict[int, float]] = {}
    room: dict[tuple[int, int], float] = {}
    for number, ends in enumerate(transfers):
        for side, capacity in enumerate((send_bytes_per_s, receive_bytes_per_s)):
            share = 1 / len(ends[side])
            for i in ends[side]:
                users.setdefault((side, i), {})[number] = share
                room[(side, i)] = capacity
    rates = [0.0] * len(transfers)
    while users:
        levels = {end: room[end] / sum(shares.values()) for end, shares in users.items()}
        level = min(levels.values())
        full = {n for end, at in levels.items() if at <= level * (1 + 1e-12) for n in users[end]}
        for number in full:
            rates[number] = level
        for end in list(users):
            for number in full & users[end].keys():
                room[end] -= level * users[end].pop(number)
            if not users[end]:
                del users[end]
    return rates
