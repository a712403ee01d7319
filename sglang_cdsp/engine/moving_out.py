"""Requests that leave an instance for another one between two steps: the source's end of a move.

KV goes ahead, layer by layer, as the prompt's last chunk computes it or while the request decodes
on. Then the request leaves SGLang's running batch as a retracted one does, but keeps its output,
its row and its KV until the controller says what has become of it: the target goes on with it, or
this instance does. All ranks of an instance do the same in the same turn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH

from sglang_cdsp.engine.joining import Joining, release
from sglang_cdsp.engine.kv_transfer import Carrier, There, Transfer, at_once
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.req_state import StaysError, kv_rows, state_of
from sglang_cdsp.engine.stock import RankScheduler
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import (
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveOutOrder,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ahead:
    """What goes ahead of a request, as it was when that began.

    Attributes:
        rows: of the pool, int64 ``[tokens]``; those before them the target has cached.
        retractions: of the request until then.
    """

    rows: torch.Tensor
    retractions: int


@dataclass(eq=False)
class _Leaving:
    """A request that is to leave.

    Attributes:
        request: as SGLang's requests are followed here; None while chunk tasks have it, or if there
            is none any more.
        ahead: what goes ahead, None before.
        parted: it is not in the running batch any more; a step of it may be under way.
        out: its state has been read off, and the rest of its KV is being sent.
        stuck: why it does not leave, and whether it never will; None as long as it may.
        failed: the controller knows that its KV does not arrive.
        moved: what the controller said of the end: whether it has moved; None before.
    """

    order: MoveOutOrder
    request: StockRequest | None
    transfer: Transfer
    ahead: _Ahead | None = None
    parted: bool = False
    out: bool = False
    stuck: tuple[str, bool] | None = None
    failed: bool = False
    moved: bool | None = None


class MovingOut:
    """What leaves one rank."""

    def __init__(
        self, scheduler: RankScheduler, reporter: Reporter, joining: Joining, carrier: Carrier
    ) -> None:
        self._scheduler = scheduler
        self._reporter = reporter
        self._joining = joining
        self._carrier = carrier
        self._leaving: dict[int, _Leaving] = {}

    def follow(self, tracker: StockTracker, tasks: Mapping[int, ChunkTask]) -> None:
        """``tracker`` follows the requests that SGLang runs here, ``tasks`` are computed here."""
        self._tracker, self._tasks = tracker, tasks

    def __bool__(self) -> bool:
        return bool(self._leaving)

    @property
    def reqs(self) -> list[Req]:
        """Requests that have left the batch, and are this instance's still."""
        reqs = [move.request.req for move in self._leaving.values() if move.parted and move.request]
        return [req for req in reqs if req is not None and not req.finished()]

    # -- orders ---------------------------------------------------------------------------

    def on_move_out(self, order: MoveOutOrder) -> None:
        """A request is to leave, once it decodes and no step of it is under way."""
        self._leaving[order.seq] = _Leaving(order, self._tracker.find(order.seq), Transfer())

    def on_move_end(self, order: MoveEndOrder) -> bool:
        """A move is over for this instance; False if it is none that leaves."""
        move = self._leaving.get(order.seq)
        if move is None:
            return False
        move.moved = order.moved
        if not order.moved:  # else the last of it is about to be confirmed
            self._carrier.stop(move.transfer)
        return True

    # -- the loop -------------------------------------------------------------------------

    def take_out(self, running: Any) -> None:
        """Take requests out of SGLang's running batch.

        With overlap the last step's results may not be in yet: such a request is in no further
        step, and leaves when they are.
        """
        for seq, move in list(self._leaving.items()):
            if move.out or move.moved is not None or move.stuck:
                continue
            if move.transfer.error:
                if self._carrier.over(move.transfer):
                    self._fail_to_leave(seq, move.transfer.error, stays=False)
                continue
            move.request = move.request or self._tracker.find(seq)
            if seq in self._tasks:
                self._begin_ahead(seq, move)
                continue  # other members are not done with it
            req = move.request.req if move.request is not None else None
            if req is None or move.request not in self._tracker:
                self._get_stuck(seq, move, "it has ended")
                continue
            if not self._all_ahead(move, req, running):
                continue
            if not move.parted and req in running.reqs and not (req.finished() or req.to_finish):
                _part(running, req)
                move.parted = True
            if not move.parted or req.finished() or self._under_way(req):
                continue
            if req.to_finish:
                self._put_back(move, req)
                self._get_stuck(seq, move, "it has been aborted")
            else:
                self._take(seq, move, req)

    # -- what goes ahead ------------------------------------------------------------------

    def _begin_ahead(self, seq: int, move: _Leaving) -> None:
        """Let a prompt's KV go ahead while its last chunk runs, layer by layer."""
        task, tokens = self._tasks[seq], move.order.ahead
        if tokens and move.ahead is None and task.takes_last and task.req is not None:
            rows = task.slot_table.slots([Span(0, tokens)])[move.order.held :]
            self._send_ahead(move, rows, task.req, task.has_whole)

    def _all_ahead(self, move: _Leaving, req: Req, running: Any) -> bool:
        """Let KV of a running request go ahead, if none has; whether it has left."""
        tokens = move.order.ahead
        # One that waits for a row, or was retracted, may have none now.
        if move.ahead is None and req in running.reqs and req.kv.kv_committed_len >= tokens > 0:
            self._send_ahead(move, self._row(req, move.order.held, tokens), req, at_once)
        return move.transfer.ahead or not tokens

    def _send_ahead(self, move: _Leaving, rows: torch.Tensor, req: Req, there: There) -> None:
        move.ahead = _Ahead(rows, req.retraction_count)
        self._carrier.send_ahead(move.transfer, move.order, rows, there)

    def _row(self, req: Req, start: int, stop: int) -> torch.Tensor:
        """Rows of the pool in which KV of a request lies, int64 ``[stop - start]``."""
        table = self._scheduler.req_to_token_pool.req_to_token
        return table[req.kv.req_pool_idx, start:stop].to(torch.int64)

    def _valid_ahead(self, move: _Leaving, req: Req) -> int:
        """How many rows the target has: those that went ahead as they are now, or its cached ones.

        A request that was retracted has other KV, and what was in its slots may have been anything.
        So may what was in those that the prefix tree had twice, and freed.
        """
        ahead, held = move.ahead, move.order.held
        if ahead is None or ahead.retractions != req.retraction_count:
            return held
        tokens = held + int(ahead.rows.numel())
        return tokens if torch.equal(ahead.rows, self._row(req, held, tokens)) else held

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
            self._put_back(move, req)
            self._get_stuck(seq, move, str(error), stays=True)
            return
        move.out = True
        ahead = self._valid_ahead(move, req)
        assert move.request is not None
        self._reporter.send_from_leader(
            MovedOut,
            seq=seq,
            rows=rows,
            ahead=ahead,
            output=output,
            start_s=move.request.start_s,
            end_s=move.request.end_s,
        )
        self._carrier.send(move.transfer, move.order, self._row(req, ahead, rows))

    def _put_back(self, move: _Leaving, req: Req) -> None:
        """A request that was taken out goes on here."""
        move.parted = False
        self._joining.go_on(req, None)

    def _get_stuck(self, seq: int, move: _Leaving, error: str, *, stays: bool = False) -> None:
        """A request does not leave: the controller is told when nothing of it travels any more."""
        move.stuck = error, stays
        self._carrier.stop(move.transfer)
        if self._carrier.over(move.transfer):
            self._fail_to_leave(seq, error, stays=stays)

    def _fail_to_leave(self, seq: int, error: str, *, stays: bool) -> None:
        del self._leaving[seq]
        self._reporter.send_from_leader(MoveFailed, seq=seq, error=error, stays=stays)

    def step(self) -> None:
        """Go on with what has come to an end since, alike at all ranks."""
        for seq, move in list(self._leaving.items()):
            if self._carrier.over(move.transfer):
                self._go_on(seq, move)

    def _go_on(self, seq: int, move: _Leaving) -> None:
        if move.stuck and move.moved is None:
            error, stays = move.stuck
            self._fail_to_leave(seq, error, stays=stays)
            return
        if move.moved is None:
            if not move.out:
                return
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
                self._put_back(move, request.req)
        del self._leaving[seq]
        self._reporter.send_from_leader(MoveEnded, seq=seq)


def _part(running: Any, req: Req) -> None:
    """Take a request out of a batch; its row and KV stay as they are."""
    running.filter_batch(keep_indices=[i for i, r in enumerate(running.reqs) if r is not req])
    running.batch_is_full = False
