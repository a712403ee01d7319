"""What the life cycle makes happen elsewhere, as an interface: the server's and the tests'."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from sglang_cdsp.pool.entry import AbortTarget, Entry
from sglang_cdsp.pool.messages import LogprobPart


class Outbox(Protocol):
    """Everything that the life cycle makes happen elsewhere."""

    def bind(self, entry: Entry) -> None:
        """Send a bound request's orders to its instances."""

    def go(self, entry: Entry, instances: Iterable[int], *, go: bool) -> None:
        """Order a chunk to start, or the task to be dropped."""

    def logprobs(self, entry: Entry, part: LogprobPart) -> None:
        """Pass prompt log-probabilities on to home."""

    def relink(self, epoch: int) -> None:
        """Order every instance to make new links."""

    def release(self, entry: Entry) -> None:
        """Order slots to be freed and the client to be answered at home."""

    def cancel_turn(self, entry: Entry) -> None:
        """Abort a one-instance request at its instance."""

    def answer(self, entry: Entry, status: HTTPStatus, message: str) -> None:
        """Answer a client whose request will not run."""

    def forward_abort(self, entry: Entry, tp_rank: int, frames: list[bytes]) -> None:
        """Pass decode's abort on to a one-instance request's instance."""

    def fail_room(self, room: int, reason: str) -> None:
        """Tell decode that a room failed."""

    def announce_failure(self, room: int, reason: str) -> None:
        """Tell every decode server that a room failed whose pages none has named."""

    def finish_room(self, room: int) -> None:
        """Tell decode that a room's KV has arrived, if its transfer engine waits to hear that."""

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Tell decode that a room's pages are safe."""

    def ended(self, entry: Entry) -> None:
        """A request is over (log, measurements)."""
