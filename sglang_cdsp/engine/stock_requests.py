"""One-instance requests while SGLang's own scheduler has them."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sglang.srt.disaggregation.utils import is_aborted

from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.stock import Batch, StockScheduler
from sglang_cdsp.engine.tasks import StockRequest
from sglang_cdsp.protocol.messages import DecodeEnded, FirstToken, StockBatch, StockEnded

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


TURNS_S = 0.05
"""How long chunks stand still until SGLang has a request that passes in a batch, and until one that
has its first token has left: some turns of the loop, each of which would cost a chunk's layer."""


class StockTracker:
    """Requests handed to the stock queues, followed until they have left them all."""

    def __init__(
        self,
        scheduler: StockScheduler,
        reporter: Reporter,
        abort: Callable[[str], None],
        joining: Callable[[], Iterable[Req]] = tuple,
    ) -> None:
        """Follow requests of ``scheduler`` and report their ends through ``reporter``.

        Args:
            abort: SGLang's own: it ends every request whose id begins with the given text.
            joining: those of its requests that wait for a row in its running batch.
        """
        self._scheduler = scheduler
        self._reporter = reporter
        self._abort = abort
        self._joining = joining
        self._active: list[StockRequest] = []
        self._starts_s: deque[float] = deque()
        self._last_end_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._active)

    def begin(self, request: StockRequest) -> None:
        """Start to follow a request; call it right before the request is handed over."""
        if request.passes:
            request.awaited_until_s = time.monotonic() + TURNS_S
        self._active.append(request)

    def join(self, request: StockRequest) -> None:
        """Follow a request that has its first token already."""
        self._active.append(request)

    def find(self, seq: int) -> StockRequest | None:
        """The followed request with that number."""
        return next((request for request in self._active if request.seq == seq), None)

    def __contains__(self, request: StockRequest | None) -> bool:
        return request in self._active

    def of(self, req: Req) -> StockRequest | None:
        """The followed request whose object is ``req``, if there is one."""
        return next((request for request in self._active if request.req is req), None)

    def let_go(self, request: StockRequest) -> None:
        """Follow a request no longer, and report nothing of it: it has another home."""
        self._active.remove(request)

    def adopt(self, req: Req) -> None:
        """Remember SGLang's object of a followed request.

        Objects, not ids, are followed: a client may use an id again as soon as it has its answer.
        """
        for request in self._active:
            if request.rid == req.rid and request.req is None:
                request.req = req
                return

    def cancel(self, seq: int) -> None:
        """Abort one followed request.

        SGLang aborts by the beginning of an id, which would take "r10" along with "r1": for the
        moment of the call the request has a name that no other begins with.
        """
        for request in self._active:
            req = request.req or _compiling(self._scheduler, request.rid)
            if request.seq == seq and req is not None:
                req.rid = f"cdsp-cancelled-{seq}-{uuid.uuid4().hex}"
                try:
                    self._abort(req.rid)
                finally:
                    req.rid = request.rid

    def prefilling(self) -> bool:
        """Whether any followed request that came up in its turn has yet to get its first token."""
        return any(request.end_s is None and not request.passes for request in self._active)

    def awaited(self, now_s: float) -> bool:
        """Whether one is about to have its first batch, or to leave."""
        return any(now_s < request.awaited_until_s for request in self._active)

    def stamp_start(self, batch: Batch) -> None:
        """Note the start of a batch, and of the first batch of each followed request."""
        now = time.monotonic()
        self._starts_s.append(now)
        reqs = batch.reqs
        for request in self._of(reqs):
            request.start_s = now if request.start_s is None else request.start_s

    def stamp_end(self, batch: Batch) -> float:
        """Note the first token of each followed request; returns the batch's seconds.

        With SGLang's overlap a batch is started before the results of the one before it are in:
        it has the device from then on.
        """
        now = time.monotonic()
        started_s = self._starts_s.popleft() if self._starts_s else now
        start_s = max(started_s, self._last_end_s)
        self._last_end_s = now
        reqs = batch.reqs
        if self._of(reqs) and batch.forward_mode.is_extend():
            parts = list(zip(batch.prefix_lens, batch.extend_lens, strict=True))
            self._reporter.send_from_leader(StockBatch, start_s=start_s, parts=parts, at_s=now)
        for request in self._of(reqs):
            if request.end_s is None and request.req is not None and len(request.req.output_ids):
                request.end_s = now
                # Where this server decodes, it stays.
                leaves = self._scheduler.disagg_prefill_bootstrap_queue is not None
                request.awaited_until_s = now + TURNS_S if leaves else 0.0
                self._reporter.send_from_leader(FirstToken, seq=request.seq, at_s=now)
        return now - start_s

    def count_waiting_from_arrival(self) -> None:
        """Let SGLang's queue time of each followed request begin where it reached the pool.

        SGLang sets it anew in each of its queues, so this is done until the first batch.
        """
        for request in self._active:
            stats = request.req.time_stats if request.req is not None else None
            if stats is not None and not stats.forward_entry_time and stats.wait_queue_entry_time:
                stats.wait_queue_entry_time = request.arrival_s

    def poll(self) -> None:
        """Report the requests that have left SGLang's queues."""
        if not self._active:
            return
        live = self._live()
        still: list[StockRequest] = []
        for request in self._active:
            if request.req in live or (request.req is None and self.awaits_grammar(request.rid)):
                still.append(request)
                continue
            failed = request.req is None or is_aborted(request.req) or request.end_s is None
            error = _reason(request.req) if failed else ""
            if request.joined:
                self._reporter.send_from_leader(DecodeEnded, seq=request.seq, error=error)
                continue
            self._reporter.send_from_leader(
                StockEnded,
                seq=request.seq,
                start_s=request.start_s,
                end_s=request.end_s,
                error=error,
            )
        self._active = still

    def awaits_grammar(self, rid: str) -> bool:
        """Whether SGLang compiles the grammar of a request before it queues it."""
        return _compiling(self._scheduler, rid) is not None

    def _of(self, reqs: list[Req]) -> list[StockRequest]:
        present = {id(req) for req in reqs}
        return [request for request in self._active if id(request.req) in present]

    def _live(self) -> set[Req]:
        scheduler = self._scheduler
        reqs = [
            *scheduler.waiting_queue,
            *scheduler.grammar_manager.grammar_queue,
            *self._joining(),
            *scheduler.running_batch.reqs,
        ]
        bootstrap = scheduler.disagg_prefill_bootstrap_queue
        if bootstrap is not None:  # a server that decodes itself has no such queues
            reqs += [*bootstrap.queue, *scheduler.disagg_prefill_inflight_queue]
        if scheduler.last_batch is not None:
            reqs += scheduler.last_batch.reqs
        if scheduler.chunked_req is not None:
            reqs.append(scheduler.chunked_req)
        return set(reqs)


def _compiling(scheduler: StockScheduler, rid: str) -> Req | None:
    """The request with that id that waits for its grammar, if there is one."""
    queue = scheduler.grammar_manager.grammar_queue
    return next((req for req in queue if req.rid == rid), None)


def take_compiling(scheduler: StockScheduler, rid: str) -> Req | None:
    """Take a request away from SGLang while its grammar compiles; None if it does not."""
    req = _compiling(scheduler, rid)
    if req is not None:
        scheduler.grammar_manager.grammar_queue.remove(req)
        if isinstance(req.grammar, Future):
            req.grammar.cancel()
        req.grammar = None
    return req


def _reason(req: Req | None) -> str:
    if req is None:
        return "rejected on arrival at its instance"
    finish = req.finished_reason or req.to_finish
    return str(getattr(finish, "message", None) or "aborted")
