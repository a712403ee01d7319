"""An instance's queue of tasks and stock requests: they start in the pool's order.

The controller decides go or drop for every chunk once all members are ready, so every member
acts alike at the same chunk boundary. All ranks of an instance receive the same orders in the
same loop iteration (SGLang's broadcast), so their queues stay alike.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.grammars import GrammarChecks
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    GoOrder,
    GrammarOrder,
    LogprobOrder,
    MeshOrder,
    PeerOrder,
    PlanOrder,
    ReleaseOrder,
    RoomOrder,
    StockEnded,
    StockOrder,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang_cdsp.transfer.manager import PoolKVManager

logger = logging.getLogger(__name__)


class ChunkEngine:
    """One scheduler's part in the pool; see the module's text."""

    def __init__(
        self,
        *,
        scheduler: Any,
        manager: PoolKVManager,
        reporter: Reporter,
        work: ChunkWork,
        relink: Callable[[int], None],
        admit: Callable[[Any], None],
        abort: Callable[[str], None],
    ) -> None:
        """What the engine makes happen.

        Args:
            scheduler: SGLang's scheduler of this rank.
            manager: takes decode's messages.
            reporter: the way to the controller.
            work: what is done for a task when it is its turn.
            relink: makes the links of an epoch, together with every other instance.
            admit: hands a one-instance request to SGLang's own intake.
            abort: ends the requests that SGLang has whose id begins with a text.
        """
        self._scheduler = scheduler
        self._manager = manager
        self._reporter = reporter
        self._work = work
        self._relink = relink
        self._admit = admit
        self._me = reporter.instance
        self._page = int(scheduler.token_to_kv_pool_allocator.page_size)
        self._queue: deque[ChunkTask | StockRequest] = deque()
        self._tasks: dict[int, ChunkTask] = {}
        self._stock = StockTracker(scheduler, reporter, abort)
        self._grammars = GrammarChecks(scheduler.grammar_manager, reporter)

    # -- orders ---------------------------------------------------------------------------

    def on_peer(self, order: PeerOrder) -> None:
        """A decode agent registered."""
        if order.tp_rank == self._reporter.tp_rank:
            self._manager.inject(order.frames)

    def on_room(self, order: RoomOrder) -> None:
        """Decode named a request's destination pages, or aborted it."""
        if order.tp_rank == self._reporter.tp_rank:
            self._manager.inject(order.frames)

    def on_plan(self, order: PlanOrder) -> None:
        """A plan that this instance takes part in joins the queue."""
        layouts = plan_layout(order.chunks, self._page)
        task = ChunkTask(
            seq=order.seq,
            rid=order.rid or "",
            room=order.room,
            probe=order.probe,
            layouts=layouts,
            tokens=torch.frombuffer(bytearray(order.tokens), dtype=torch.int64),
            slot_table=SlotTable(self._scheduler.token_to_kv_pool_allocator, self._page),
            next_chunk=next(c.index for c in layouts if self._me in c.group),
            spec=order.logprobs,
        )
        self._tasks[order.seq] = task
        self._queue.append(task)

    def on_stock(self, order: StockOrder) -> None:
        """A one-instance request joins the queue; the request itself follows."""
        self._queue.append(StockRequest(order.seq, order.rid or ""))

    def on_cancel(self, order: CancelOrder) -> None:
        """Abort a one-instance request, whether SGLang has it already or not."""
        for entry in [e for e in self._queue if isinstance(e, StockRequest) and e.seq == order.seq]:
            self._forget(entry)
            return
        self._stock.cancel(order.seq)

    def on_logprobs(self, order: LogprobOrder) -> None:
        """Another member's prompt log-probabilities arrive at home."""
        task = self._tasks.get(order.part.seq)
        if task is not None:
            task.logprobs.append(order.part)

    def on_grammar(self, order: GrammarOrder) -> None:
        """A request that waits for decode has a grammar."""
        self._grammars.begin(order)

    def on_go(self, order: GoOrder) -> None:
        """Run a chunk, or drop its task."""
        task = self._tasks.get(order.seq)
        if task is None or task.over:
            return
        if not order.go:
            task.over = True
            return
        self._work.run(task, order.chunk)

    def on_mesh(self, order: MeshOrder) -> None:
        """Make new links; returns when every instance has."""
        self._relink(order.epoch)

    def on_release(self, order: ReleaseOrder) -> None:
        """Every holder's writes have drained: free the slots and answer the client at home."""
        task = self._tasks.pop(order.seq, None)
        if task is None:
            return
        task.over = True
        if task in self._queue:
            self._queue.remove(task)
        self._work.release(task, order.error, silent=order.silent)

    # -- SGLang's side --------------------------------------------------------------------

    def holds_back(self, request: Any) -> bool:
        """Keep a request whose turn has not come; False for a request that is not ours."""
        for entry in self._queue:
            if (
                isinstance(entry, StockRequest)
                and entry.rid == request.rid
                and entry.request is None
            ):
                entry.request = request
                return True
        return False

    def abort_stock(self, rid: str, *, everything: bool) -> None:
        """Forget one-instance requests that SGLang has not been given yet."""
        for entry in [e for e in self._queue if isinstance(e, StockRequest)]:
            if everything or entry.rid.startswith(rid):
                self._forget(entry)

    def _forget(self, stock: StockRequest) -> None:
        self._queue.remove(stock)
        self._reporter.send_from_leader(
            StockEnded, seq=stock.seq, start_s=None, end_s=None, error="aborted"
        )

    def adopt(self, req: Req) -> bool:
        """Take SGLang's request object at home; False for a request of the stock path."""
        for task in self._tasks.values():
            if task.rid == req.rid and task.home == self._me and task.req is None:
                if req.to_finish is not None or req.finished():
                    reason = getattr(req.to_finish or req.finished_reason, "message", "rejected")
                    self._scheduler.retire_unadmitted_request(req)
                    self._work.fail(task, str(reason), bad_request=True)
                    return True
                req.sampling_params.max_new_tokens = 1
                task.req = req
                return True
        self._stock.adopt(req)
        return False

    def intake_over(self, rid: str) -> None:
        """SGLang has seen a request: at home it was adopted, waits for its grammar, or is refused.

        Where SGLang answers a refusal without queueing the request, nobody else would tell, and
        the task would hold up the queue for ever.
        """
        for task in self._tasks.values():
            at_home = task.rid == rid and task.home == self._me and not task.over
            if at_home and task.req is None and not self._stock.awaits_grammar(rid):
                self._work.fail(task, "SGLang refused the request", bad_request=True)

    def stamp_start(self, reqs: list[Req]) -> None:
        """A stock batch starts."""
        self._stock.stamp_start(reqs)

    def stamp_end(self, reqs: list[Req]) -> None:
        """A stock batch's results are in."""
        self._stock.stamp_end(reqs)

    @property
    def idle(self) -> bool:
        """Whether the engine holds nothing: no slots, no queue, no write in flight."""
        return not self._queue and not self._tasks and not self._stock

    def step(self) -> None:
        """One turn of the scheduler's loop: poll writes, advance the queue."""
        for task in list(self._tasks.values()):
            self._work.poll(task)
        self._stock.poll()
        self._grammars.poll()
        while self._queue:
            head = self._queue[0]
            if isinstance(head, ChunkTask):
                if head.over:
                    self._queue.popleft()
                    continue
                if not self._stock.prefilling():
                    self._work.announce(head)
                return
            if head.request is None:
                return
            self._queue.popleft()
            self._stock.begin(head)
            self._admit(head.request)
