"""Requests that come from another instance between two steps: the target's end of a move.

KV comes ahead of a request, layer by layer; what SGLang's tree has cached of it here is locked and
does not travel. When the request has left its source the rest of it follows over the links; what
else there is of it comes through the controller (``req_state.py``).
All ranks of an instance do the same in the same turn.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sglang_cdsp.engine.joining import Joining, make_room, shares_prefixes
from sglang_cdsp.engine.kv_transfer import Carrier, Transfer
from sglang_cdsp.engine.prefixes import Match
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.req_state import restore
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.stock import RankScheduler
from sglang_cdsp.engine.stock_requests import StockTracker, take_compiling
from sglang_cdsp.engine.tasks import StockRequest
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import (
    MovedIn,
    MovedOrder,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveReady,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Coming:
    """A request that is to go on here.

    Attributes:
        req: SGLang's, None until SGLang made it.
        slots: where its KV comes to, after what is cached of it here.
        moved: what has left the source, None before.
        follows: the rest of its KV is expected.
        off: the move does not come about.
        error: why it cannot go on here, "" while it can.
    """

    order: MoveInOrder
    slots: SlotTable
    transfer: Transfer
    req: Req | None = None
    ready: bool = False
    moved: MovedOrder | None = None
    follows: bool = False
    off: bool = False
    error: str = ""


class MovingIn:
    """What comes to one rank."""

    def __init__(
        self,
        scheduler: RankScheduler,
        reporter: Reporter,
        joining: Joining,
        carrier: Carrier,
        match: Match,
    ) -> None:
        """``match`` finds cached prefixes, and locks them."""
        self._match = match
        self._scheduler = scheduler
        self._reporter = reporter
        self._joining = joining
        self._carrier = carrier
        self._coming: dict[int, _Coming] = {}

    def follow(self, tracker: StockTracker) -> None:
        """``tracker`` follows the requests that SGLang runs here."""
        self._tracker = tracker

    def __bool__(self) -> bool:
        return bool(self._coming)

    @property
    def held_tokens(self) -> int:
        """KV slots of what is to go on here."""
        return sum(move.slots.tokens for move in self._coming.values())

    # -- orders ---------------------------------------------------------------------------

    def on_move_in(self, order: MoveInOrder) -> None:
        """A request is to go on here; it follows."""
        allocator = self._scheduler.token_to_kv_pool_allocator
        slots = SlotTable(allocator, int(allocator.page_size))
        self._coming[order.seq] = _Coming(order, slots, Transfer())

    def on_moved(self, order: MovedOrder) -> None:
        """The rest of a request's KV is on its way to here."""
        move = self._coming.get(order.seq)
        if move is None or move.off or move.error:
            return
        move.moved = order
        if move.transfer.running is None:
            self._expect_rest(move, order)

    def _take_slots(self, move: _Coming, start: int, stop: int) -> None:
        """Take slots for rows of a request; where they are not free it cannot go on here."""
        if start == stop:
            return
        page = move.slots.page_size
        need = -(-(stop - start) // page) * page
        if not make_room(self._scheduler, need):
            move.error = f"{need} KV slots are not free here"
            return
        move.slots.take([Span(start, stop)])

    def _expect_ahead(self, move: _Coming) -> int:
        """Take in what goes ahead of a request, but for what is cached here, which is locked.

        Returns:
            Rows that are cached.
        """
        rows = move.order.ahead
        if not rows:
            return 0
        assert move.req is not None
        if shares_prefixes(self._scheduler.tree_cache):
            # Its output is not known here yet.
            tokens = np.asarray(move.req.origin_input_ids[:rows], dtype=np.int64)
            prefix = self._match(move.req, torch.from_numpy(tokens))
            if prefix is not None:
                move.slots.use(prefix)
        held = move.slots.tokens
        self._take_slots(move, held, rows)
        if not move.error:
            into = move.slots.slots([Span(0, rows)])[held:]
            self._carrier.receive_ahead(move.transfer, move.order, into)
        return held

    def _expect_rest(self, move: _Coming, order: MovedOrder) -> None:
        """Take in what has not come ahead of a request, or came in vain; but what is cached."""
        move.follows = True
        if move.transfer.error:
            return
        self._take_slots(move, move.order.ahead, order.rows)
        if not move.error:
            spans = [Span(order.ahead, order.rows)] if order.ahead < order.rows else []
            self._carrier.receive(move.transfer, move.order, move.slots.slots(spans))

    def on_move_end(self, order: MoveEndOrder) -> None:
        """A move does not come about. What goes on here already is none any more."""
        move = self._coming.get(order.seq)
        if move is not None:
            move.off = True
            # At once: what comes to here next under its id is another one.
            take_compiling(self._scheduler, move.order.rid or "")
            self._carrier.stop(move.transfer)

    # -- SGLang's requests ----------------------------------------------------------------

    def adopt(self, req: Req) -> bool:
        """Take SGLang's object of a request that is to go on here; False for any other."""
        move = self._awaiting(req.rid)
        if move is None:
            return False
        if req.to_finish is not None or req.finished():
            move.error = "SGLang refused the request here"
            self._scheduler.retire_unadmitted_request(req)
        else:
            # It waits in no queue here; what it waited elsewhere is no time of this queue.
            req.time_stats.wait_queue_entry_time = time.monotonic()
            move.req = req
        return True

    def intake_over(self, rid: str) -> None:
        """SGLang has seen a request: it was adopted, waits for its grammar, or is refused."""
        move = self._awaiting(rid)
        if move is not None and not move.error and not self._tracker.awaits_grammar(rid):
            move.error = "SGLang refused the request here"

    def _awaiting(self, rid: str) -> _Coming | None:
        """The request that is to come under an id and whose object SGLang has yet to make."""
        coming = (m for m in self._coming.values() if not (m.req or m.off or m.error))
        return next((move for move in coming if move.order.rid == rid), None)

    # -- the loop -------------------------------------------------------------------------

    def step(self) -> None:
        """Go on with what has come to an end since, alike at all ranks."""
        for seq, move in list(self._coming.items()):
            if self._carrier.over(move.transfer):
                self._go_on(seq, move)

    def _go_on(self, seq: int, move: _Coming) -> None:
        arrived = move.transfer.arrived and not move.off
        error = move.error or move.transfer.error or (self._restored(move) if arrived else "")
        if not (move.off or error) and move.moved is not None and not move.follows:
            self._expect_rest(move, move.moved)
        elif move.off or error:
            del self._coming[seq]
            move.slots.clear()
            if move.off:
                self._reporter.send_from_leader(MoveEnded, seq=seq)
            else:
                self._reporter.send_from_leader(MoveFailed, seq=seq, error=error)
        elif arrived:
            del self._coming[seq]
            self._join(seq, move)
        elif move.req is not None and not move.ready:
            held = self._expect_ahead(move)
            if move.error:
                return  # it is told in the next turn
            move.ready = True
            self._reporter.send_from_leader(MoveReady, seq=seq, held=held)

    def _restored(self, move: _Coming) -> str:
        """Make a request what it was at its source; why that cannot be done, or ""."""
        assert move.moved is not None
        assert move.req is not None
        try:
            restore(self._scheduler, move.req, move.moved.output)
        except Exception as error:
            logger.exception("request %s cannot go on from its output", move.req.rid)
            return str(error) or repr(error)
        return ""

    def _join(self, seq: int, move: _Coming) -> None:
        """The request goes on here with its next token."""
        assert move.moved is not None
        assert move.req is not None
        req = move.req
        req.time_stats.set_forward_entry_time()
        req.time_stats.set_prefill_finished_time()
        prefix = move.slots.prefix
        self._joining.go_on(req, move.slots.hand_over(move.moved.rows), prefix)
        now_s = time.monotonic()
        self._tracker.join(StockRequest(seq, req.rid, now_s, req=req, end_s=now_s, joined=True))
        self._reporter.send_from_leader(MovedIn, seq=seq)
