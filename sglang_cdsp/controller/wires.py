"""The controller's ways to its schedulers, by seat, life after life."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from sglang.srt.managers.io_struct import sock_send
from sglang.srt.utils.network import get_zmq_socket

from sglang_cdsp.controller.seats.socket import LifeSocket, SeatSocket, Sink

IPC = "ipc://"


class SeatWires:
    """One socket a life, at an address of its own, and a sink where none listens.

    ``workers`` is the list that SGLang's controller sends by; a life's socket stands in it from
    when the life listens.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        workers: list[Any],
        listens: Callable[[int, bool], None],
    ) -> None:
        """Nobody listens yet.

        Args:
            workers: SGLang's, changed in place.
            listens: told of a seat that hears SGLang's messages from now on, or none any more.
        """
        self._context = context
        self._workers = workers
        self._listens = listens
        self._sockets: dict[int, tuple[LifeSocket, str]] = {}
        for seat in range(len(workers)):
            workers[seat] = Sink()

    def open(self, seat: int, endpoint: str) -> None:
        """Make the socket of a seat's next life, which connects to ``endpoint``."""
        self._close(seat)
        socket = get_zmq_socket(self._context, zmq.PUSH, endpoint, True)
        self._sockets[seat] = (LifeSocket(socket), endpoint)

    def send(self, seat: int, order: Any) -> None:
        """Send an order to a seat; where nobody lives, it is dropped."""
        worker: SeatSocket = self._workers[seat]
        sock_send(worker, order)

    def connected(self, seat: int) -> bool:
        """Whether what is sent to the seat reaches its present life."""
        return seat in self._sockets and self._sockets[seat][0].connected

    def listening(self, seat: int, *, listens: bool) -> None:
        """A life hears SGLang's messages from now on, or hears nothing any more."""
        if listens:
            self._workers[seat] = self._sockets[seat][0]
        else:
            self._workers[seat] = Sink()
            self._close(seat)
        self._listens(seat, listens)

    def _close(self, seat: int) -> None:
        if seat in self._sockets:
            socket, endpoint = self._sockets.pop(seat)
            socket.close()
            if endpoint.startswith(IPC):
                with contextlib.suppress(OSError):
                    Path(endpoint.removeprefix(IPC)).unlink(missing_ok=True)
