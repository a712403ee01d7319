"""What the life cycle makes happen elsewhere, as an interface, and who is told of it."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from sglang_cdsp.controller.prefixes.copy import Copy
from sglang_cdsp.controller.request import AbortTarget, PoolRequest
from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import LogprobPart, OutputState


class Effects(Protocol):
    """Everything that the life cycle makes happen elsewhere."""

    def bind(self, request: PoolRequest) -> None:
        """Send a bound request's orders to its instances."""

    def replan(self, request: PoolRequest, before: Plan) -> None:
        """Send the orders of a request whose rest has another plan than ``before``."""

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """Order the next chunk to start at its members."""

    def stop(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """Order a task to end, inside a chunk too, at some instances of its plan."""

    def logprobs(self, request: PoolRequest, part: LogprobPart) -> None:
        """Pass prompt log-probabilities on to home."""

    def release(self, request: PoolRequest) -> None:
        """Order slots to be freed and the client to be answered at home."""

    def cancel_stock(self, request: PoolRequest) -> None:
        """Abort a one-instance request at its instance."""

    def move_in(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int
    ) -> None:
        """Ask an instance to get ready to be a request's next home, and to take KV rows ahead."""

    def move_out(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int, held: int
    ) -> None:
        """Order a request's home to send it to an instance that is ready, KV rows ahead of it.

        ``held``: so many of these rows the target has cached.
        """

    def moved(
        self, request: PoolRequest, target: int, rows: int, output: OutputState, ahead: int
    ) -> None:
        """Tell the target what has left the source: so many KV rows in all, and the output.

        ``ahead``: so many of them went ahead, or are cached there.
        """

    def move_end(self, seq: int, instance: int, *, moved: bool) -> None:
        """Tell source or target that the move of a task is over for it."""

    def move_over(self, request: PoolRequest) -> None:
        """Another instance goes on with a request, by the last of its ``moves``."""

    def copy_in(self, copy: Copy) -> None:
        """Ask a copy's target to get ready."""

    def copy_out(self, copy: Copy) -> None:
        """Order a copy's source to send what the target lacks."""

    def copy_end(self, number: int, instance: int) -> None:
        """Order an instance to end its part of a copy that does not come about."""

    def copy_over(self, copy: Copy) -> None:
        """Nobody has anything of a copy any more, whether it has arrived or not."""

    def answer(self, request: PoolRequest, status: HTTPStatus, message: str) -> None:
        """Answer a client whose request will not run."""

    def forward_abort(self, request: PoolRequest, tp_rank: int, frames: list[bytes]) -> None:
        """Pass decode's abort on to a one-instance request's instance."""

    def fail_room(self, room: int, reason: str) -> None:
        """Tell decode that a room failed."""

    def announce_failure(self, room: int, reason: str) -> None:
        """Tell every decode server that a room failed whose pages none has named."""

    def finish_room(self, room: int) -> None:
        """Tell decode that a room's KV has arrived, if its transfer engine waits to hear that."""

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Tell decode that a room's pages are safe."""

    def lost(self, request: PoolRequest) -> None:
        """A request ends because of an instance that was given up."""

    def recalled(self, request: PoolRequest) -> None:
        """A request is back among those that wait for a plan."""

    def ended(self, request: PoolRequest) -> None:
        """A request is over."""

    def roles_changed(self, roles: Roles, why: str) -> None:
        """The seats have other roles."""


class Observer:
    """Base of who is told of effects and causes none: the plan log, the metrics."""

    def bound(self, request: PoolRequest) -> None:
        """A request got its plan."""

    def replanned(self, request: PoolRequest) -> None:
        """The rest of the request got another plan, the last of its ``replans``."""

    def chunk_started(self, request: PoolRequest) -> None:
        """The request's next chunk was ordered to start."""

    def stopped(self, request: PoolRequest) -> None:
        """The request's task was ordered to end before its last chunk had."""

    def lost(self, request: PoolRequest) -> None:
        """The request ends because of an instance that was given up."""

    def recalled(self, request: PoolRequest) -> None:
        """The request is back among those that wait for a plan."""

    def ended(self, request: PoolRequest) -> None:
        """A request is over."""

    def moved(self, request: PoolRequest) -> None:
        """Another instance goes on with a request, by the last of its ``moves``."""

    def copied(self, copy: Copy) -> None:
        """A copy of a cached prefix is over, whether it has arrived or not."""

    def roles_changed(self, roles: Roles, why: str) -> None:
        """The seats have other roles."""

    def seat_changed(self, seat: int, incarnation: int, state: str, why: str) -> None:
        """A seat is in another state now; ``incarnation`` is its present or last life."""

    def seat_died(self, seat: int, cause: str) -> None:
        """A life of a seat was given up."""
