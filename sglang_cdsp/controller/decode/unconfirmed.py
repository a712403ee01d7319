"""Rooms that decode gave up, and that may still be written to as far as decode was told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sglang_cdsp.controller.request import AbortTarget, PoolRequest

logger = logging.getLogger(__name__)

RELEASE_VAR = "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT"
"""Decode's variable, seconds: it uses an aborted room's pages after that without our word."""


@dataclass
class _Waiting:
    """Who waits to hear of a room, until when, and whether it was said that this is over."""

    room: int
    target: AbortTarget
    until_s: float
    said: bool = False


class Unconfirmed:
    """Knows until when decode waits for the acknowledgement of an abort."""

    def __init__(self, release_s: float, clock: Callable[[], float]) -> None:
        """Nothing was asked yet.

        Args:
            release_s: decode's release time-out, as far as the pool knows it.
            clock: monotonic seconds.
        """
        self._release_s = release_s
        self._clock = clock
        self._waiting: list[_Waiting] = []

    def asked(self, room: int, target: AbortTarget) -> None:
        """Decode waits from now on."""
        self._waiting.append(_Waiting(room, target, self._clock() + self._release_s))

    def told(self, room: int, target: AbortTarget) -> None:
        """Decode was told."""
        self._keep(lambda waiting: waiting.room != room or waiting.target != target)

    def forget(self, room: int) -> None:
        """Somebody else tells decode, or the room is another request's now."""
        self._keep(lambda waiting: waiting.room != room)

    def gone(self, host: str, port: int) -> None:
        """A decode rank waits for nothing any more."""
        self._keep(lambda waiting: (waiting.target.host, waiting.target.port) != (host, port))

    def warn(self, request_of: Callable[[int], PoolRequest | None]) -> None:
        """Say, once for each, whose pages are used again now although decode was told nothing.

        ``request_of`` gives the request that has a room.
        """
        now_s = self._clock()
        for waiting in self._waiting:
            if not waiting.said and waiting.until_s <= now_s:
                waiting.said = True
                logger.warning("sglang-cdsp: %s", self._warning(waiting, request_of(waiting.room)))

    def _warning(self, waiting: _Waiting, request: PoolRequest | None) -> str:
        target, why = waiting.target, "a write to them failed in an unknown state"
        if request is not None and request.plan is not None:
            ended = {instance for instance, _ in request.drained}
            if at := sorted({*request.plan.instances} - ended):
                why = f"instances {at} have not said that their writes have ended"
        return (
            f"decode at {target.host}:{target.port} gave bootstrap room {waiting.room} up "
            f"{self._release_s:g} s ago and may use its pages again now, although {why}; to have "
            f"it wait longer start it with a larger {RELEASE_VAR}"
        )

    def _keep(self, wanted: Callable[[_Waiting], bool]) -> None:
        self._waiting = [waiting for waiting in self._waiting if wanted(waiting)]
