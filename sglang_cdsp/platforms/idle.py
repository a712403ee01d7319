"""Idle processes that wait instead of spinning.

SGLang's schedulers and its data-parallel controller poll without pause: an idle process uses a
whole core. On a machine without an accelerator those cores are what the model runs on.
"""

import time
from typing import Any

import zmq

BUSY_WAIT_MS = 1
"""Longest wait of a scheduler that has no batch but waits for KV transfer or a handshake.

These end in other threads, which nothing announces; a message ends the wait at once.
"""

IDLE_WAIT_MS = 50
"""Longest wait of a fully idle scheduler: all that can end its idleness is a message."""

CONTROLLER_WAIT_MS = 20
"""Longest wait of an idle data-parallel controller; a request ends it at once."""


def pause_idle_scheduler(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER hook on the scheduler's idle path: wait a moment for a message.

    A rank without a socket of its own (it gets its messages from the first rank of its group)
    only sleeps, for the shorter time. A chunk that gave way needs no message to go on.
    """
    if getattr(scheduler, "works_without_batches", False):
        return
    socket = getattr(scheduler, "recv_from_tokenizer", None)
    if isinstance(socket, zmq.Socket):
        socket.poll(IDLE_WAIT_MS if scheduler.is_fully_idle() else BUSY_WAIT_MS)
    else:
        time.sleep(BUSY_WAIT_MS / 1000)


def pause_paused_scheduler(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER hook on the loop of a paused engine, which skips the idle path."""
    time.sleep(BUSY_WAIT_MS / 1000)


class PatientSocket:
    """A socket whose non-blocking ``recv`` first waits a moment for a message.

    Everything else is the wrapped socket's. The controller asks it in an endless loop, so the wait
    belongs here rather than in the loop, which may then stay SGLang's.
    """

    def __init__(self, socket: Any, wait_ms: int):
        self._socket = socket
        self._wait_ms = wait_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def recv(self, flags: int = 0, *args: Any, **kwargs: Any) -> Any:
        """``zmq.Socket.recv``."""
        if flags & zmq.NOBLOCK:
            self._socket.poll(self._wait_ms)
        return self._socket.recv(flags, *args, **kwargs)

    def recv_pyobj(self, flags: int = 0) -> Any:
        """``zmq.Socket.recv_pyobj``."""
        if flags & zmq.NOBLOCK:
            self._socket.poll(self._wait_ms)
        return self._socket.recv_pyobj(flags)


def make_controller_patient(controller: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE hook on the data-parallel controller's event loop."""
    controller.recv_from_tokenizer = PatientSocket(
        controller.recv_from_tokenizer, CONTROLLER_WAIT_MS
    )
