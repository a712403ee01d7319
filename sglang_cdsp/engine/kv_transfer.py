"""KV on its way from one instance to another, layer by layer: a running request's, or a prefix.

Most of a request's goes ahead, while it is still computed or decodes on: nobody waits for that.
What is left then follows in one go when the request itself has left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from sglang_cdsp.engine.coroutines import Coroutine, Coroutines, StoppedError
from sglang_cdsp.engine.forward_state import enter_forward_stream
from sglang_cdsp.engine.stock import JoinedScheduler
from sglang_cdsp.parallel.moves import MoveHandle, start_moves
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.rebalancer import rows_of_layer
from sglang_cdsp.parallel.spans import Move, Span
from sglang_cdsp.protocol.messages import CopyInOrder, CopyOutOrder, MoveInOrder, MoveOutOrder

if TYPE_CHECKING:
    from sglang_cdsp.parallel.links.lanes import Lane, LinkHub

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 32 << 20
"""A message of KV at most: both ends hold two of them beside the pool."""

URGENT = -1.0
"""Chunks stand still while KV of a running request travels: its client waits for the next token."""


InOrder = MoveInOrder | CopyInOrder
OutOrder = MoveOutOrder | CopyOutOrder


@dataclass(eq=False)
class Transfer:
    """One end of a way.

    Attributes:
        lane: of the links, one for all that travels; None before.
        running: the coroutine, None when none is.
        ahead: what goes ahead has left, or has come.
        arrived: all rows have left, or have come.
        settled: nothing that was sent before an error is still being written.
        error: why they have not arrived, "" while all is well; alike at all ranks.
    """

    lane: Lane | None = None
    running: Coroutine | None = None
    ahead: bool = False
    arrived: bool = False
    settled: bool = False
    error: str = ""


There = Callable[[int], bool]
"""Whether the KV of the n-th of the model's layers lies in all rows that are to leave, or will once
the forward stream has run. What it raises ends the transfer."""


def at_once(layer: int) -> bool:
    """Every layer is there."""
    return True


class Carrier:
    """Sends and receives KV on one rank."""

    def __init__(
        self,
        scheduler: JoinedScheduler,
        coroutines: Coroutines,
        hub: LinkHub,
        instance: int,
        layers: tuple[int, ...],
        ranks: Ranks = ALONE,
        what: str = "request",
        urgency: float = URGENT,
    ) -> None:
        """Nothing travels yet.

        Args:
            layers: those of the model that have KV, in order.
            ranks: of this instance.
            what: it is that travels, for logs and status.
            urgency: first number of the order of the coroutines in which it does.
        """
        self._what, self._urgency = what, urgency
        self._scheduler = scheduler
        self._coroutines = coroutines
        self._hub = hub
        self._me = instance
        self._layers = layers
        self._ranks = ranks
        self._model_runner = scheduler.tp_worker.model_runner

    def send_ahead(
        self,
        transfer: Transfer,
        order: MoveOutOrder,
        rows: torch.Tensor,
        there: There,
    ) -> None:
        """Let rows of the pool, int64 ``[tokens]``, leave as soon as their layers are ``there``."""
        self._start(transfer, order, (self._me, order.target), rows, there)

    def receive_ahead(self, transfer: Transfer, order: MoveInOrder, rows: torch.Tensor) -> None:
        """Let what goes ahead come into these rows of the pool, int64 ``[tokens]``."""
        self._start(transfer, order, (order.source, self._me), rows, at_once)

    def send(self, transfer: Transfer, order: OutOrder, rows: torch.Tensor) -> None:
        """Let the rest, these rows of the pool, int64 ``[tokens]``, leave for the target."""
        self._start(transfer, order, (self._me, order.target), rows)

    def receive(self, transfer: Transfer, order: InOrder, rows: torch.Tensor) -> None:
        """Let the rest go into these rows of the pool, int64 ``[tokens]``."""
        self._start(transfer, order, (order.source, self._me), rows)

    def stop(self, transfer: Transfer) -> None:
        """End what travels, and what would follow it; alike at all ranks."""
        if transfer.error or transfer.arrived:
            return
        why = "the move was called off"
        if transfer.running is not None:
            self._coroutines.stop(transfer.running, why)
        elif transfer.lane is not None:
            transfer.error = why
            transfer.lane.close()

    def over(self, transfer: Transfer) -> bool:
        """Whether nothing travels, nor did ever; asked in every turn, alike at all ranks."""
        if transfer.running is not None:
            return False
        lane = transfer.lane
        if not transfer.error or transfer.settled or lane is None:
            return True
        name = "a move ends"
        work = partial(self._settle, transfer, lane)
        transfer.running = self._coroutines.start(name, (self._urgency, 0), work)
        return False

    def _start(
        self,
        transfer: Transfer,
        order: InOrder | OutOrder,
        ends: tuple[int, int],
        rows: torch.Tensor,
        there: There | None = None,
    ) -> None:
        name = f"{self._what} {order.seq} moves from {ends[0]} to {ends[1]}"
        ahead = there is not None
        work = partial(self._run, transfer, order, ends, rows, there)
        transfer.running = self._coroutines.start(
            f"{name}, ahead" if ahead else name, (self._urgency, order.seq), work, aside=ahead
        )

    def _run(
        self,
        transfer: Transfer,
        order: InOrder | OutOrder,
        ends: tuple[int, int],
        rows: torch.Tensor,
        there: There | None,
    ) -> None:
        try:
            self._coroutines.give_way()
            try:
                self._carry(transfer, order, ends, rows, there)
            except StoppedError:
                raise
            except Exception as failure:
                self._coroutines.fail(str(failure) or repr(failure))
        except StoppedError as stopped:
            transfer.error = str(stopped) or "it was stopped"
        else:
            transfer.ahead = True
            transfer.arrived = there is None
        if transfer.lane is not None and (transfer.arrived or transfer.error):
            transfer.lane.close()
        transfer.running = None

    def _carry(
        self,
        transfer: Transfer,
        order: InOrder | OutOrder,
        ends: tuple[int, int],
        rows: torch.Tensor,
        there: There | None,
    ) -> None:
        """All layers, one after the other.

        Raises:
            StoppedError: it is not to go on.
            LinkError: the other end is gone.
        """
        enter_forward_stream(self._scheduler, self._model_runner.device)
        lane = transfer.lane
        if lane is None:
            lane = transfer.lane = self._hub.open(order.lane, order.serial, ends)
        if rows.numel():
            self._carry_layers(lane, ends, rows, there)
        self._coroutines.give_way(lane.settled)

    def _carry_layers(
        self, lane: Lane, ends: tuple[int, int], rows: torch.Tensor, there: There | None
    ) -> None:
        running: MoveHandle | None = None
        for number, layer in enumerate(self._layers):
            if there is not None:
                self._coroutines.give_way(partial(there, number))
            buffers = rows_of_layer(self._model_runner.token_to_kv_pool, layer)
            for part in rows.split(_rows_at_once(buffers)):
                # One message at a time: more would pile up in front of a slower partner.
                if running is not None:
                    running.wait()
                moves = [Move(*ends, Span(0, int(part.numel())))]
                running = start_moves(
                    buffers,
                    moves,
                    self._me,
                    partial(_all_of, part),
                    lane,
                    note=layer,
                    ranks=self._ranks,
                )
        if running is not None:
            running.wait()

    def _settle(self, transfer: Transfer, lane: Lane) -> None:
        """Wait until nothing is written any more."""
        try:
            self._coroutines.give_way()
            self._coroutines.give_way(lane.settled)
        except StoppedError as stopped:
            logger.error("the end of a move was not awaited: %s", stopped)
        transfer.settled, transfer.running = True, None


def _all_of(rows: torch.Tensor, span: Span) -> torch.Tensor:
    """The rows of a message, whose only span is all of them."""
    return rows


def _rows_at_once(buffers: Sequence[torch.Tensor]) -> int:
    """Rows of a layer that go in one message, alike at both ends."""
    row_bytes = sum(buffer[0].nbytes for buffer in buffers)
    return max(1, MESSAGE_BYTES // row_bytes)
