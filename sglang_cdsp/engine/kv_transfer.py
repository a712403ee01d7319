"""KV on its way from one instance to another, layer by layer: a running request's, or a prefix."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from sglang_cdsp.engine.coroutines import Coroutine, Coroutines, StoppedError
from sglang_cdsp.engine.forward_state import enter_forward_stream
from sglang_cdsp.engine.stock import JoinedScheduler
from sglang_cdsp.parallel.gather import Gather
from sglang_cdsp.parallel.spans import Move, Span
from sglang_cdsp.protocol.messages import CopyInOrder, CopyOutOrder, MoveInOrder, MoveOutOrder

if TYPE_CHECKING:
    from sglang_cdsp.parallel.links.lanes import Lane, LinkHub

logger = logging.getLogger(__name__)

URGENT = -1.0
"""Chunks stand still while KV of a running request travels: its client waits for the next token."""


InOrder = MoveInOrder | CopyInOrder
OutOrder = MoveOutOrder | CopyOutOrder


@dataclass(eq=False)
class Transfer:
    """One end of a way.

    Attributes:
        running: the coroutine, None when none is.
        arrived: all rows have left, or have come.
        settled: nothing that was sent before an error is still being written.
        error: why they have not arrived, "" while all is well; alike at all ranks.
    """

    lane: Lane | None = None
    running: Coroutine | None = None
    arrived: bool = False
    settled: bool = False
    error: str = ""


class Carrier:
    """Sends and receives KV on one rank."""

    def __init__(
        self,
        scheduler: JoinedScheduler,
        coroutines: Coroutines,
        hub: LinkHub,
        instance: int,
        layers: tuple[int, ...],
        what: str = "request",
        urgency: float = URGENT,
    ) -> None:
        """Nothing travels yet.

        Args:
            layers: those of the model that have KV, in order.
            what: it is that travels, for logs and status.
            urgency: first number of the order of the coroutines in which it does.
        """
        self._what, self._urgency = what, urgency
        self._scheduler = scheduler
        self._coroutines = coroutines
        self._hub = hub
        self._me = instance
        self._layers = layers
        self._model_runner = scheduler.tp_worker.model_runner

    def send(self, transfer: Transfer, order: OutOrder, rows: torch.Tensor) -> None:
        """Let these rows of the pool, int64 ``[tokens]``, leave for the target."""
        self._start(transfer, order, (self._me, order.target), rows)

    def receive(self, transfer: Transfer, order: InOrder, rows: torch.Tensor) -> None:
        """Let what comes from the source go into these rows of the pool, int64 ``[tokens]``."""
        self._start(transfer, order, (order.source, self._me), rows)

    def stop(self, transfer: Transfer) -> None:
        """End what travels; alike at all ranks."""
        if transfer.running is not None and not transfer.error:
            self._coroutines.stop(transfer.running, "the move was called off")

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
    ) -> None:
        name = f"{self._what} {order.seq} moves from {ends[0]} to {ends[1]}"
        work = partial(self._run, transfer, order, ends, rows)
        transfer.running = self._coroutines.start(name, (self._urgency, order.seq), work)

    def _run(
        self,
        transfer: Transfer,
        order: InOrder | OutOrder,
        ends: tuple[int, int],
        rows: torch.Tensor,
    ) -> None:
        try:
            self._coroutines.give_way()
            try:
                self._carry(transfer, order, ends, rows)
            except StoppedError:
                raise
            except Exception as failure:
                self._coroutines.fail(str(failure) or repr(failure))
        except StoppedError as stopped:
            transfer.error = str(stopped) or "it was stopped"
        else:
            transfer.arrived = True
        if transfer.lane is not None:
            transfer.lane.close()
        transfer.running = None

    def _carry(
        self,
        transfer: Transfer,
        order: InOrder | OutOrder,
        ends: tuple[int, int],
        rows: torch.Tensor,
    ) -> None:
        """All layers, one after the other.

        Raises:
            StoppedError: it is not to go on.
            LinkError: the other end is gone.
        """
        enter_forward_stream(self._scheduler, self._model_runner.device)
        lane = transfer.lane = self._hub.open(order.lane, order.serial, ends)
        gather = Gather(
            pool=self._model_runner.token_to_kv_pool,
            moves=[Move(*ends, Span(0, int(rows.numel())))],
            instance=self._me,
            slots_of=lambda span: rows,
            links=lane,
        )
        for layer in self._layers:
            gather.after_attention(layer)
        gather.finish()
        self._coroutines.give_way(lane.settled)

    def _settle(self, transfer: Transfer, lane: Lane) -> None:
        """Wait until nothing is written any more."""
        try:
            self._coroutines.give_way()
            self._coroutines.give_way(lane.settled)
        except StoppedError as stopped:
            logger.error("the end of a move was not awaited: %s", stopped)
        transfer.settled, transfer.running = True, None
