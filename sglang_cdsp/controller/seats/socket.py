"""The way to a seat's scheduler, and to a seat where there is none: a send never blocks.

A ZMQ socket that pushes to nobody waits until somebody comes. A scheduler may end at any time, and
the controller, which would learn of it next, must not wait for it.
"""

from __future__ import annotations

import pickle
from typing import Any, Protocol

import zmq


class SeatSocket(Protocol):
    """What SGLang's ``sock_send`` needs of a socket."""

    def send(self, data: bytes, flags: int = 0) -> None:
        """Send bytes, or drop them where nobody listens."""

    def send_pyobj(self, obj: Any, flags: int = 0, protocol: int = -1) -> None:
        """Send an object, or drop it where nobody listens."""


class LifeSocket:
    """Sends to the process that has connected; without one, drops what it is given."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """Take over a socket that is bound to a life's own address."""
        self._socket = socket

    @property
    def connected(self) -> bool:
        """Whether the process has connected."""
        return bool(self._socket.poll(0, zmq.POLLOUT))

    def send(self, data: bytes, flags: int = 0) -> None:
        """See ``SeatSocket``. What is dropped is no loss: its reader has ended."""
        try:
            self._socket.send(data, flags | zmq.NOBLOCK)
        except zmq.Again:
            return

    def send_pyobj(self, obj: Any, flags: int = 0, protocol: int = -1) -> None:
        """See ``SeatSocket``."""
        self.send(pickle.dumps(obj, protocol), flags)

    def close(self) -> None:
        """Forget what has not been read: its reader has ended."""
        self._socket.close(linger=0)


class Sink:
    """Takes what is sent to a seat on which nobody lives."""

    def send(self, data: bytes, flags: int = 0) -> None:
        """Drop it."""

    def send_pyobj(self, obj: Any, flags: int = 0, protocol: int = -1) -> None:
        """Drop it."""
