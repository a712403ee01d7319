"""What the schedulers were told that stays true: a seat's next life is told it, too."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from sglang_cdsp.protocol.messages import LoadOrder, PeerOrder, StatusOrder


class Told:
    """The last of each kind of order that stays true."""

    def __init__(self) -> None:
        self._peers: dict[tuple[int, Hashable], PeerOrder] = {}
        self._status: StatusOrder | None = None
        self._load: tuple[int, LoadOrder] | None = None

    def peer(self, rank: Hashable, order: PeerOrder) -> None:
        """A decode agent registered; ``rank`` is its name, and a later one takes its place."""
        key = (order.tp_rank, rank)
        self._peers.pop(key, None)
        self._peers[key] = order

    def status(self, order: StatusOrder) -> None:
        """What ``/server_info`` shows."""
        self._status = order

    def load(self, seat: int, order: LoadOrder) -> None:
        """What waits at the controller, counted by one seat."""
        self._load = (seat, order)

    def orders(self, seat: int) -> Iterator[Any]:
        """All that a new life of ``seat`` must hear, decode's registrations in their order."""
        yield from self._peers.values()
        if self._status is not None:
            yield self._status
        if self._load is not None and self._load[0] == seat:
            yield self._load[1]
