"""SGLang's health checks in front of a pool: any instance that is up answers for all."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

REMEMBERED = 16
SAY_EVERY_S = 30.0


class HealthChecks:
    """Passes checks round among the seats that are up; those of a seat that is lost go on."""

    def __init__(
        self,
        *,
        up: Callable[[], Sequence[int]],
        degraded: Callable[[], str],
        send: Callable[[int, Any], None],
        clock: Callable[[], float],
    ) -> None:
        """Pass on nothing yet.

        Args:
            up: the seats that take requests.
            degraded: which seats should be up and are not, and why; "" while all are.
            send: sends a check to a seat.
            clock: monotonic seconds.
        """
        self._up = up
        self._degraded = degraded
        self._send = send
        self._clock = clock
        self._next = 0
        self._sent: deque[tuple[int, Any]] = deque(maxlen=REMEMBERED)
        self._said_s = float("-inf")

    def pass_on(self, check: Any) -> None:
        """Send a check to the next seat; with none up it gets no answer, which makes it fail."""
        seats = self._up()
        if not seats:
            logger.error("sglang-cdsp: no instance is up: not healthy")
            return
        seat = seats[self._next % len(seats)]
        self._next += 1
        self._sent.append((seat, check))
        self._send(seat, check)

    def lost(self, seat: int) -> None:
        """What the seat may not have answered is asked of another one."""
        again = [check for at, check in self._sent if at == seat]
        kept = [(at, check) for at, check in self._sent if at != seat]
        self._sent = deque(kept, maxlen=REMEMBERED)
        for check in again[-1:]:
            self.pass_on(check)

    def say_degraded(self) -> None:
        """Log that a pool works without some of its seats, now and then."""
        why = self._degraded()
        if why and self._clock() >= self._said_s + SAY_EVERY_S:
            self._said_s = self._clock()
            logger.warning("sglang-cdsp: degraded: %s", why)
