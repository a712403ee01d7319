"""What the seats of a pool need of it: its requests, its schedulers, and who looks on."""

from __future__ import annotations

from typing import Any, Protocol

from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import Answered, AnyReport, Streamed


class SeatRequests(Protocol):
    """What becomes of the pool's requests when seats come and go; see ``Lifecycle``."""

    def on_report(self, report: AnyReport) -> None: ...

    def on_probe(self, request: PoolRequest, plan: Plan) -> None: ...

    def on_seat_lost(self, seat: int, why: str) -> None: ...

    def on_seat_ended(self, seat: int) -> None: ...

    def on_seat_up(self, seat: int) -> None: ...

    def on_seat_draining(self, seat: int) -> None: ...

    def on_seat_stays_down(self, seat: int, why: str) -> None: ...

    def seat_idle(self, seat: int) -> bool: ...


class Wires(Protocol):
    """The controller's ways to its schedulers, and who else is told."""

    def send(self, seat: int, order: Any) -> None:
        """Send an order to a seat; where nobody lives, it is dropped."""

    def connected(self, seat: int) -> bool:
        """Whether what is sent to the seat reaches its present life."""

    def listening(self, seat: int, *, listens: bool) -> None:
        """A life hears SGLang's messages from now on, or hears nothing any more."""

    def emptied(self, seat: int) -> None:
        """Nothing of a life is left on the seat."""

    def tell(self, seat: int) -> None:
        """Tell a new life what its predecessor was told."""

    def quiet(self) -> bool:
        """Whether the pool starts nothing now: a pause, or memory that was released."""

    def caught_up(self, seat: int) -> str | None:
        """Whether a new life is as its predecessor was told to be: None if not yet.

        "" if it is, else why it cannot be.
        """

    def answered(self, report: Answered) -> None:
        """A life answers a question of SGLang's to all of them."""

    def streamed(self, report: Streamed) -> None:
        """A life's output is passed on to the detokenizer."""


class SeatObserver(Protocol):
    """Who is told of seats and causes nothing: the plan log, the metrics."""

    def seat_changed(self, seat: int, incarnation: int, state: str, why: str) -> None: ...

    def seat_died(self, seat: int, cause: str) -> None: ...
