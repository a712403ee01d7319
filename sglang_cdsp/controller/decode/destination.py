"""Where the pool's KV goes: to decode servers, or nowhere because the pool decodes itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import zmq

from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeRank
from sglang_cdsp.controller.decode.wire import PeerMessage, RoomAbort, RoomPages
from sglang_cdsp.controller.request import AbortTarget


class Destination(Protocol):
    """The pool's face towards decode servers: ``DecodeEndpoint``.

    Attributes:
        sockets: what to poll for ``messages``.
    """

    @property
    def sockets(self) -> Sequence[zmq.Socket[bytes]]: ...

    def messages(self) -> Iterator[tuple[int, PeerMessage | RoomPages | RoomAbort]]:
        """What waits at the sockets, with the prefill rank that it is meant for."""

    def watch(self, rank: DecodeRank) -> None:
        """Keep an eye on a decode rank from now on."""

    def changes(self) -> Iterator[tuple[str, int, bool]]:
        """Decode ranks (host, port) that can be reached (True) or no longer (False) since."""

    def register(self, url: str, row: dict[str, Any]) -> None:
        """Let decode servers find the pool."""

    def fail_room(
        self, room: int, rank: RoomMessage | DecodeRank, reason: str, status: HTTPStatus
    ) -> None:
        """Tell a decode rank that a room failed."""

    def finish_room(self, room: int, message: RoomMessage) -> None:
        """Tell decode that all KV and the metadata are there."""

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Tell decode that nobody writes to an aborted room's pages any more."""


class NoDestination:
    """No decode server: requests have no rooms, so nothing comes and there is nothing to tell."""

    sockets: Sequence[zmq.Socket[bytes]] = ()

    def messages(self) -> Iterator[tuple[int, PeerMessage | RoomPages | RoomAbort]]:
        """None."""
        return iter(())

    def watch(self, rank: DecodeRank) -> None:
        """Nobody to watch."""

    def changes(self) -> Iterator[tuple[str, int, bool]]:
        """None."""
        return iter(())

    def register(self, url: str, row: dict[str, Any]) -> None:
        """Nobody looks for it."""

    def fail_room(
        self, room: int, rank: RoomMessage | DecodeRank, reason: str, status: HTTPStatus
    ) -> None:
        """There are no rooms."""

    def finish_room(self, room: int, message: RoomMessage) -> None:
        """There are no rooms."""

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """There are no rooms."""
