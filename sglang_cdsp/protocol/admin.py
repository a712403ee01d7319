"""The controller's end of ``/cdsp/status``, ``/cdsp/update`` and ``/cdsp/timeline``.

The HTTP process asks over one request/reply socket; the controller answers between two turns of
its loop, so a reader always sees a consistent state.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

logger = logging.getLogger(__name__)


class AdminRequest(msgspec.Struct, frozen=True):
    """Asks for the status, or for what the timeline has had since, or is the body of an update."""

    key: str
    update: Any = None
    since: int | None = None


class AdminReply(msgspec.Struct, frozen=True):
    """``error`` "" for success, else with the HTTP ``status`` that fits; ``body`` is JSON-ready."""

    body: Any
    error: str = ""
    status: int = 200


class AdminServer:
    """Answers the HTTP process."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        key: str,
        *,
        status: Callable[[], dict[str, Any]],
        update: Callable[[Any], None],
        timeline: Callable[[int], dict[str, Any]],
    ) -> None:
        """Bind ``endpoint`` for those who know ``key``.

        Args:
            status: what is told.
            update: is given the body of an update; ``ValueError`` where that is refused.
            timeline: is given where the asker's last answer ended.
        """
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self._key = key
        self._status = status
        self._update = update
        self._timeline = timeline

    def serve(self) -> None:
        """Answer what waits; never blocks."""
        while self.socket.poll(0):
            try:
                request = msgspec.msgpack.decode(self.socket.recv(), type=AdminRequest)
                if not hmac.compare_digest(request.key.encode(), self._key.encode()):
                    raise ValueError("this is not the server's own HTTP process")
                reply = AdminReply(self._answer(request))
            except (ValueError, msgspec.MsgspecError) as error:
                reply = AdminReply(None, str(error), 400)
            except Exception as error:
                # Nobody's question may take the pool along.
                logger.exception("a question of the HTTP process failed")
                reply = AdminReply(None, f"this failed, see the server's log: {error!r}", 500)
            with contextlib.suppress(zmq.ZMQError):  # the asker is gone
                self.socket.send(msgspec.msgpack.encode(reply))

    def _answer(self, request: AdminRequest) -> dict[str, Any]:
        if request.since is not None:
            return self._timeline(request.since)
        if request.update is not None:
            self._update(request.update)
        return self._status()
