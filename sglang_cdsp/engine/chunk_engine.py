"""One scheduler's part in the pool: the controller's orders, SGLang's requests, and their turns.

The controller starts a chunk once all members are ready, and stops a task at all of them. What a
chunk takes is done elsewhere (``chunk_work.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.copying import Copying
from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.faults import moments_of
from sglang_cdsp.engine.grammars import GrammarChecks
from sglang_cdsp.engine.home_requests import HomeRequests
from sglang_cdsp.engine.joining import Joining
from sglang_cdsp.engine.link_orders import LinkOrders
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.stock import Batch, StockScheduler
from sglang_cdsp.engine.stock_numbers import Load
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.task_queue import TaskQueue
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    ForgetOrder,
    GoOrder,
    GrammarOrder,
    LogprobOrder,
    PeerOrder,
    PlanOrder,
    ReleaseOrder,
    RestOrder,
    ResumeOrder,
    RoomOrder,
    StockEnded,
    StockOrder,
    StopOrder,
)

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req

    from sglang_cdsp.parallel.links.lanes import LinkHub
    from sglang_cdsp.transfer.manager import PoolKVManager


class ChunkEngine:
    """The chunk tasks and one-instance requests of one rank, from their order to their end.

    Attributes:
        links: takes the orders about links to other instances.
    """

    def __init__(
        self,
        *,
        scheduler: StockScheduler,
        manager: PoolKVManager | None,
        reporter: Reporter,
        work: ChunkWork,
        coroutines: Coroutines,
        hub: LinkHub,
        admit: Callable[[TokenizedGenerateReqInput], None],
        abort: Callable[[str], None],
        joining: Joining | None = None,
        moving: Moving | None = None,
        copying: Copying | None = None,
        stock_tokens: int = 0,
    ) -> None:
        """What the engine makes happen.

        Args:
            scheduler: SGLang's scheduler of this rank.
            manager: takes decode's messages; None where there is no decode server.
            reporter: the way to the controller.
            work: does what a task's chunks take.
            coroutines: what runs chunks, and gives way.
            hub: the links to the other instances.
            admit: hands a one-instance request to SGLang's own intake.
            abort: ends the requests that SGLang has whose id begins with a text.
            joining: takes computed prompts to SGLang's running batch; None where a decode server
                has them next.
            moving: takes running requests to other instances, and from them; None as ``joining``.
            copying: takes cached prefixes to other instances, and from them; None as ``joining``.
            stock_tokens: what SGLang itself prefills at most, of what it has retracted.
        """
        self._copying = copying
        self._scheduler = scheduler
        self._manager = manager
        self._reporter = reporter
        self._work = work
        self._coroutines = coroutines
        self._hub = hub
        self._admit = admit
        self._instance = reporter.instance
        self._page = int(scheduler.token_to_kv_pool_allocator.page_size)
        self._tasks: dict[int, ChunkTask] = {}
        self._queue = TaskQueue()
        self._worked = False
        self._joining = joining
        self._moving = moving
        self._admitted = StockTracker(scheduler, reporter, abort, self._between_batches)
        if moving is not None:
            moving.follow(self._admitted, self._tasks)
        self._grammars = GrammarChecks(scheduler.grammar_manager, reporter)
        self._home = HomeRequests(
            tasks=self._tasks,
            scheduler=scheduler,
            reporter=reporter,
            work=work,
            admitted=self._admitted,
            joining=joining,
            moving=moving,
            stock_tokens=stock_tokens,
        )
        self.links = LinkOrders(hub, reporter)

    def _between_batches(self) -> list[Req]:
        """Requests that SGLang decodes and that are in none of its batches now."""
        joining = self._joining.reqs if self._joining is not None else []
        return [*joining, *(self._moving.reqs if self._moving is not None else [])]

    # -- orders ---------------------------------------------------------------------------

    def on_peer(self, order: PeerOrder) -> None:
        """A decode agent registered."""
        if order.tp_rank == self._reporter.tp_rank:
            assert self._manager is not None
            self._manager.inject(order.frames)

    def on_room(self, order: RoomOrder) -> None:
        """Decode named a request's destination pages, or aborted it."""
        if order.tp_rank == self._reporter.tp_rank:
            assert self._manager is not None
            self._manager.inject(order.frames)

    def on_plan(self, order: PlanOrder) -> None:
        """A plan that this instance takes part in joins the queue."""
        layouts = plan_layout(order.chunks, self._page, order.reused)
        task = ChunkTask(
            seq=order.seq,
            rid=order.rid or "",
            room=order.room,
            probe=order.probe,
            layouts=layouts,
            tokens=torch.frombuffer(bytearray(order.tokens), dtype=torch.int64),
            slot_table=SlotTable(self._scheduler.token_to_kv_pool_allocator, self._page),
            next_chunk=next(c.index for c in layouts if self._instance in c.group),
            revision=order.revision,
            arrival_s=order.arrival_s,
            logprob_spec=order.logprobs,
            urgency=order.urgency,
            passes=order.passes,
            gathers=order.gathers or (self._joining is not None and not order.probe),
            joins=self._joining is not None and not order.probe,
            reused=order.reused,
            copy=order.copy,
        )
        self._tasks[order.seq] = task
        self._queue.append(task)

    def on_rest(self, order: RestOrder) -> None:
        """What follows the chunks that ran of a task runs by another plan; its place stays."""
        task = self._tasks.get(order.seq)
        if task is None or task.over:
            return
        layouts = plan_layout(order.chunks, self._page, task.reused)
        self._work.take_rest(task, order, layouts)

    def on_forget(self, order: ForgetOrder) -> None:
        """A task goes on without this instance, which has run nothing of it."""
        task = self._tasks.pop(order.seq, None)
        if task is None:
            return
        self._queue.remove(task)
        self._work.forget(task)

    def on_stock(self, order: StockOrder) -> None:
        """A one-instance request joins the queue; the request itself follows."""
        self._queue.append(
            StockRequest(order.seq, order.rid or "", order.arrival_s, passes=order.passes)
        )

    def on_resume(self, order: ResumeOrder) -> None:
        """The request that follows has output already."""
        task = self._tasks.get(order.seq)
        if task is not None:
            task.output = order.output

    def on_cancel(self, order: CancelOrder) -> None:
        """Abort a request of SGLang's, whether it has it already or not."""
        if not self._forget(lambda request: request.seq == order.seq):
            self._admitted.cancel(order.seq)

    def on_logprobs(self, order: LogprobOrder) -> None:
        """Another member's prompt log-probabilities arrive at home."""
        task = self._tasks.get(order.part.seq)
        if task is not None:
            task.logprob_parts.append(order.part)

    def on_grammar(self, order: GrammarOrder) -> None:
        """A request that waits for decode has a grammar."""
        self._grammars.begin(order)

    def on_go(self, order: GoOrder) -> None:
        """Start a chunk. Messages are read here: it runs in the engine's turns."""
        task = self._tasks.get(order.seq)
        if task is None or task.over:
            return
        if order.revision != task.revision:
            self._work.fail(
                task,
                f"chunk {order.chunk} of plan {order.revision} was started, this instance has plan "
                f"{task.revision}",
            )
            return
        task.decode_share = order.decode_share
        self._work.begin(task, order)

    def on_stop(self, order: StopOrder) -> None:
        """A task ends before its last chunk has."""
        task = self._tasks.get(order.seq)
        if task is not None and order.resumes:
            self._home.withdraw(task)
        if task is not None and task.joined:
            if not task.withdrawn:
                self._admitted.cancel(order.seq)
        elif task is not None and not task.over:
            self._work.stop(task)

    def on_release(self, order: ReleaseOrder) -> None:
        """Every holder's writes have drained: free the slots and answer the client at home."""
        task = self._tasks.pop(order.seq, None)
        if task is None:
            return
        task.over = True
        self._queue.remove(task)
        error = self._home.join_released(task, order)
        self._work.release(task, error, silent=order.silent)

    # -- SGLang's requests ----------------------------------------------------------------

    def holds_back(self, tokenized: TokenizedGenerateReqInput) -> bool:
        """Keep a request whose turn has not come; False for a request that is not ours."""
        return self._queue.hold(tokenized)

    def abort_stock(self, rid: str, *, everything: bool) -> None:
        """Forget one-instance requests that SGLang has not been given yet."""
        self._forget(lambda request: everything or request.rid.startswith(rid))

    def _forget(self, wanted: Callable[[StockRequest], bool]) -> bool:
        """Take requests out of the queue and report their end; whether there were any."""
        forgotten = self._queue.take_requests(wanted)
        for request in forgotten:
            self._reporter.send_from_leader(
                StockEnded, seq=request.seq, start_s=None, end_s=None, error="aborted"
            )
        return bool(forgotten)

    def adopt(self, req: Req) -> bool:
        """Take SGLang's request object at home; False for a request of the stock path."""
        return self._home.adopt(req)

    def gives_back(self, req: Req) -> bool:
        """Whether a request that SGLang has retracted goes back to the controller."""
        return self._home.gives_back(req)

    def intake_over(self, rid: str) -> None:
        """SGLang has seen a request."""
        self._home.intake_over(rid)

    def stamp_start(self, batch: Batch) -> None:
        """A stock batch starts."""
        self._admitted.stamp_start(batch)

    def stamp_end(self, batch: Batch) -> float:
        """A stock batch's results are in, chunks stood still meanwhile; returns its seconds."""
        seconds = self._admitted.stamp_end(batch)
        self._coroutines.passed(seconds)
        return seconds

    # -- the loop -------------------------------------------------------------------------

    @property
    def load(self) -> Load:
        """The requests that this instance answers and SGLang does not have."""
        mine = [
            task
            for task in self._tasks.values()
            if task.answers_at(self._instance) and not (task.drained or task.joined)
        ]
        held = self._queue.requests()
        waiting = [int(t.tokens.numel()) for t in mine if t.waits]
        waiting += [len(r.tokenized.input_ids or ()) if r.tokenized else 0 for r in held]
        return Load(len(mine) + len(held) - len(waiting), len(waiting), sum(waiting))

    def snapshot(self) -> dict[str, Any]:
        """What runs or is suspended, and what is waited for on the links; JSON-ready."""
        return {"running": self._coroutines.snapshot(), "links": self._hub.snapshot()}

    @property
    def moments(self) -> frozenset[str]:
        """What is under way, in the words of the orders of ``faults``."""
        return moments_of(self._tasks.values(), idle=self.idle)

    @property
    def idle(self) -> bool:
        """Whether the engine holds nothing: no slots, no queue, no write in flight."""
        busy = self._queue or self._tasks or self._admitted or self._moving or self._copying
        return not busy

    def step(self) -> None:
        """One turn of the scheduler's loop: poll what is under way, advance the queue, compute."""
        self.poll_writes()
        self._admitted.poll()
        self._admitted.count_waiting_from_arrival()
        self._grammars.poll()
        self._advance()
        self._worked = self._coroutines.turn()
        self._home.join_computed()
        if self._moving is not None:
            self._moving.step()
        if self._copying is not None:
            self._copying.step()

    @property
    def computes(self) -> bool:
        """Whether a chunk runs or is suspended here."""
        return self._coroutines.computes

    def give_back(self) -> None:
        """Requests that decode are short of slots: tasks that only wait leave them theirs."""
        for task in self._tasks.values():
            self._work.give_back(task)

    @property
    def decode_share(self) -> float:
        """Share of the instance's time that decode gets beside the chunks that run here."""
        running = (task for task in self._tasks.values() if task.running is not None)
        return max((task.decode_share for task in running), default=0.0)

    @property
    def held_tokens(self) -> int:
        """KV slots that chunk tasks hold here, requests that come, and prefixes that do."""
        coming = self._moving.held_tokens if self._moving is not None else 0
        if self._copying is not None:
            coming += self._copying.held_tokens
        return coming + sum(task.slot_table.tokens for task in self._tasks.values())

    @property
    def awaits(self) -> bool:
        """Whether something is about to begin or to end: long chunks stand still for a moment."""
        now_s = time.monotonic()
        return self._admitted.awaited(now_s) or any(
            now_s < task.awaited_until_s for task in self._tasks.values()
        )

    @property
    def worked(self) -> bool:
        """Whether the last turn computed something: then the next may, without any message."""
        return self._worked

    def poll_writes(self) -> None:
        """Look after the writes of all tasks; nothing new begins."""
        for task in list(self._tasks.values()):
            self._work.poll(task)

    def _advance(self) -> None:
        """Announce and admit what may start: the first in the order, and what passes it."""
        for item in self._queue.passing():
            self._offer(item)
        while (head := self._queue.head()) is not None:
            # A chunk starts between SGLang's batches, not among them.
            if isinstance(head, ChunkTask) and self._admitted.prefilling():
                return
            if not self._offer(head):
                return

    def _offer(self, item: ChunkTask | StockRequest) -> bool:
        """Let an item start if it can; whether the next one in the order may too."""
        if isinstance(item, ChunkTask):
            self._work.announce(item, prefix_comes=self._prefix_comes(item))
            return False
        if item.tokenized is None:
            return False
        self._queue.remove(item)
        self._admitted.begin(item)
        self._admit(item.tokenized)
        return True

    def _prefix_comes(self, task: ChunkTask) -> bool:
        """Whether the prefix that a task starts from is in another task's slots here, soon cached.

        Its writes to decode end first. All ranks of the instance see it alike: a task leaves by the
        controller's order.
        """
        if not task.starts_from_cache(self._instance):
            return False
        at_home = (t for t in self._tasks.values() if t.home == self._instance)
        return any(other.brings(task) for other in at_home)
