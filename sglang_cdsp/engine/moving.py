"""Running requests that leave for another instance between two steps, or come from one.

At its source a request leaves SGLang's running batch as a retracted one does, but keeps its output,
its row and its KV until the controller says what has become of it: the target goes on with it, or
the source does. KV travels over the links, layer by layer; what else there is of it goes through
the controller (``req_state.py``). All ranks of an instance do the same in the same turn.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH

from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.joining import Joining, make_room, release
from sglang_cdsp.engine.kv_transfer import Carrier, Transfer
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.req_state import StaysError, kv_rows, restore, state_of
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.stock import RankScheduler
from sglang_cdsp.engine.stock_requests import StockTracker, take_compiling
from sglang_cdsp.engine.tasks import StockRequest
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import (
    MovedIn,
    MovedOrder,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveOutOrder,
    MoveReady,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang_cdsp.parallel.links.lanes import LinkHub

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Leaving:
    """A request that is to leave.

    Attributes:
        request: as SGLang's requests are followed here; None if there is none any more.
        parted: it is not in the running batch any more; a step of it may be under way.
        out: its state has been read off, and its KV is being sent.
        failed: the controller knows that its KV does not arrive.
        moved: what the controller said of the end: whether it has moved; None before.
    """

    order: MoveOutOrder
    request: StockRequest | None
    transfer: Transfer
    parted: bool = False
    out: bool = False
    failed: bool = False
    moved: bool | None = None


@dataclass(eq=False)
class _Coming:
    """A request that is to go on here.

    Attributes:
        req: SGLang's, None until SGLang made it.
        slots: where its KV comes to.
        order: what has left the source, None before.
        off: the move does not come about.
        error: why it cannot go on here, "" while it can.
    """

    order: MoveInOrder
    slots: SlotTable
    transfer: Transfer
    req: Req | None = None
    ready: bool = False
    moved: MovedOrder | None = None
    off: bool = False
    error: str = ""


class Moving:
    """The moves of one rank."""

    def __init__(
        self,
        *,
        scheduler: RankScheduler,
        reporter: Reporter,
        joining: Joining,
        coroutines: Coroutines,
        hub: LinkHub,
        layers: tuple[int, ...],
        ranks: Ranks = ALONE,
    ) -> None:
        """``layers``: those of the model that have KV, in order; ``ranks``: of this instance."""
        self._scheduler = scheduler
        self._reporter = reporter
        self._joining = joining
        self._carrier = Carrier(scheduler, coroutines, hub, reporter.instance, layers, ranks)
        self._leaving: dict[int, _Leaving] = {}
        self._coming: dict[int, _Coming] = {}

    def follow(self, tracker: StockTracker) -> None:
        """``tracker`` follows the requests that SGLang runs here."""
        self._tracker = tracker

    def __bool__(self) -> bool:
        return bool(self._leaving or self._coming)

    @property
    def reqs(self) -> list[Req]:
        """Requests that have left the batch, and are this instance's still."""
        reqs = [move.request.req for move in self._leaving.values() if move.parted and move.request]
        return [req for req in reqs if req is not None and not req.finished()]

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

    def on_move_out(self, order: MoveOutOrder) -> None:
        """A request is to leave, once no step of it is under way."""
        self._leaving[order.seq] = _Leaving(order, self._tracker.find(order.seq), Transfer())

    def on_moved(self, order: MovedOrder) -> None:
        """KV of a request is on its way to here."""
        move = self._coming.get(order.seq)
        if move is None or move.off or move.error:
            return
        move.moved = order
        page = move.slots.page_size
        need = -(-order.rows // page) * page
        if not make_room(self._scheduler, need):
            move.error = f"{need} KV slots are not free here"
            return
        span = Span(0, order.rows)
        move.slots.take([span])
        rows = move.slots.slots([span])
        self._carrier.receive(move.transfer, move.order, rows)

    def on_move_end(self, order: MoveEndOrder) -> None:
        """A move is over for this instance. What goes on here already is none any more."""
        if (leaving := self._leaving.get(order.seq)) is not None:
            leaving.moved = order.moved
            if not order.moved:  # else the last of it is about to be confirmed
                self._carrier.stop(leaving.transfer)
        elif (coming := self._coming.get(order.seq)) is not None:
            coming.off = True
            # At once: what comes to here next under its id is another one.
            take_compiling(self._scheduler, coming.order.rid or "")
            self._carrier.stop(coming.transfer)

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

    def take_out(self, running: Any) -> None:
        """Take requests out of SGLang's running batch.

        With overlap the last step's results may not be in yet: such a request is in no further
        step, and leaves when they are.
        """
        for seq, move in list(self._leaving.items()):
            if move.out or move.moved is not None:
                continue
            req = move.request.req if move.request is not None else None
            if req is None or move.request not in self._tracker:
                self._fail_to_leave(seq, "it has ended")
                continue
            if not move.parted and req in running.reqs and not (req.finished() or req.to_finish):
                _part(running, req)
                move.parted = True
            if not move.parted or req.finished() or self._under_way(req):
                continue
            if req.to_finish:
                self._joining.go_on(req, None)
                self._fail_to_leave(seq, "it has been aborted")
            else:
                self._take(seq, move, req)

    def _under_way(self, req: Req) -> bool:
        """Whether a step of a request runs whose results are not in."""
        queue = self._scheduler.result_queue if self._scheduler.enable_overlap else ()
        return any(req in batch.reqs for batch, _ in queue)

    def _take(self, seq: int, move: _Leaving, req: Req) -> None:
        """Let one go; its row and KV stay as they are."""
        rows = kv_rows(req)
        try:
            if req.kv.kv_committed_len != rows:
                raise StaysError(f"{req.kv.kv_committed_len} rows of KV where {rows} should be")
            output = state_of(req)
        except StaysError as error:
            logger.info("request %s stays on its instance: %s", req.rid, error)
            self._joining.go_on(req, None)
            self._fail_to_leave(seq, str(error), stays=True)
            return
        move.out = True
        assert move.request is not None
        self._reporter.send_from_leader(
            MovedOut,
            seq=seq,
            rows=rows,
            output=output,
            start_s=move.request.start_s,
            end_s=move.request.end_s,
        )
        row = self._scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :rows]
        self._carrier.send(move.transfer, move.order, row.to(torch.int64))

    def _fail_to_leave(self, seq: int, error: str, *, stays: bool = False) -> None:
        del self._leaving[seq]
        self._reporter.send_from_leader(MoveFailed, seq=seq, error=error, stays=stays)

    def step(self) -> None:
        """Go on with what has come to an end since, alike at all ranks."""
        for seq, leaving in list(self._leaving.items()):
            if self._carrier.over(leaving.transfer):
                self._go_on_leaving(seq, leaving)
        for seq, coming in list(self._coming.items()):
            if self._carrier.over(coming.transfer):
                self._go_on_coming(seq, coming)

    def _go_on_leaving(self, seq: int, move: _Leaving) -> None:
        if move.moved is None:
            # All of it may have come to the target, which may go on with it: who may do so is not
            # this instance's to say.
            if move.transfer.error and not move.failed:
                move.failed = True
                error = move.transfer.error
                self._reporter.send_from_leader(MoveFailed, seq=seq, error=error)
            return
        request = move.request
        if move.parted and request is not None and request.req is not None:
            if self._under_way(request.req):
                return
            if move.moved:
                self._tracker.let_go(request)
                # Here it has ended: the prefix tree may keep what it can.
                request.req.finished_reason = FINISH_LENGTH(length=len(request.req.output_ids))
                release(request.req, self._scheduler.tree_cache)
            elif not request.req.finished():
                self._joining.go_on(request.req, None)
        del self._leaving[seq]
        self._reporter.send_from_leader(MoveEnded, seq=seq)

    def _go_on_coming(self, seq: int, move: _Coming) -> None:
        arrived = move.transfer.arrived and not move.off
        error = move.error or move.transfer.error or (self._restored(move) if arrived else "")
        if move.off or error:
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
            move.ready = True
            self._reporter.send_from_leader(MoveReady, seq=seq)

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
        self._joining.go_on(req, move.slots.hand_over(move.moved.rows))
        now_s = time.monotonic()
        self._tracker.join(StockRequest(seq, req.rid, now_s, req=req, end_s=now_s, joined=True))
        self._reporter.send_from_leader(MovedIn, seq=seq)


def _part(running: Any, req: Req) -> None:
    """Take a request out of a batch; its row and KV stay as they are."""
    running.filter_batch(keep_indices=[i for i, r in enumerate(running.reqs) if r is not req])
    running.batch_is_full = False
