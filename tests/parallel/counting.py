"""Bytes that a member hands to its links."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable


class Counting:
    """Counts the bytes that an exchanger sends."""

    def __init__(self, links: Exchanger) -> None:
        self._links = links
        self.sent = 0

    def exchange(
        self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0
    ) -> Waitable:
        self.sent += sum(message.tensor.nbytes for message in sends)
        return self._links.exchange(sends, recvs, note)
