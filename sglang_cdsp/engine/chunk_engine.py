"""One scheduler's part in the pool: the controller's orders, SGLang's requests, and their turns.

The controller starts a chunk once all members are ready, and stops a task at all of them. What a
chunk takes is done elsewhere (``chunk_work.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.faults import moments_of
from sglang_cdsp.engine.grammars import GrammarChecks
from sglang_cdsp.engine.joining import Joining, withdraw
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.req_state import StaysError, restore, state_of
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.stock import Batch, StockScheduler
from sglang_cdsp.engine.stock_numbers import Load
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.task_queue import TaskQueue
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    ForgetOrder,
    GoOrder,
    GrammarOrder,
    Invitation,
    InviteOrder,
    LeaveOrder,
    LinkOrder,
    LogprobOrder,
    PeerOrder,
    PlanOrder,
    ReleaseOrder,
    RestOrder,
    ResumeOrder,
    Retracted,
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

logger = logging.getLogger(__name__)


class ChunkEngine:
    """The chunk tasks and one-instance requests of one rank, from their order to their end."""

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
            stock_tokens: what SGLang itself prefills at most, of what it has retracted.
        """
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
        self._stock_tokens = stock_tokens
        self._admitted = StockTracker(scheduler, reporter, abort, self._between_batches)
        if moving is not None:
            moving.follow(self._admitted)
        self._grammars = GrammarChecks(scheduler.grammar_manager, reporter)

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
            gathers=self._joining is not None and not order.probe,
            reused=order.reused,
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
            self._withdraw(task)
        if task is not None and task.joined:
            if not task.withdrawn:
                self._admitted.cancel(order.seq)
        elif task is not None and not task.over:
            self._work.stop(task)

    def on_link(self, order: LinkOrder) -> None:
        """Another instance can be reached. If it has ended meanwhile, the next chunk will tell."""
        if order.tp_rank == self._reporter.tp_rank:
            try:
                self._hub.join(order.seat, order.incarnation, order.invitation)
            except LinkError as error:
                logger.error("no link to instance %d: %s", order.seat, error)

    def on_leave(self, order: LeaveOrder) -> None:
        """A life of another instance is given up: what needs it fails, the rest goes on.

        Its memory here stays as it is until its end is known, see ``on_invite``.
        """
        if self._hub.incarnation_of(order.seat) == order.incarnation:
            self._hub.drop(order.seat, f"its life {order.incarnation} was given up")

    def on_invite(self, order: InviteOrder) -> None:
        """All processes of another instance's former life have ended; its next life may link up."""
        words, error = b"", ""
        try:
            words = self._hub.invite(order.seat)
        except LinkError as failure:
            error = str(failure)
        self._reporter.send(
            Invitation, seat=order.seat, life=order.incarnation, invitation=words, error=error
        )

    def on_release(self, order: ReleaseOrder) -> None:
        """Every holder's writes have drained: free the slots and answer the client at home."""
        task = self._tasks.pop(order.seq, None)
        if task is None:
            return
        task.over = True
        self._queue.remove(task)
        error = order.error
        if not (task.joined or error or order.silent) and self._may_join(task):
            error = self._work.collect_logprobs(task)
            if not error:
                self._join(task)
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
        task = next(iter(self._awaiting(req.rid)), None)
        if task is None and self._moving is not None and self._moving.adopt(req):
            return True
        if task is None:
            self._admitted.adopt(req)
            return False
        if req.to_finish is not None or req.finished():
            reason = getattr(req.to_finish or req.finished_reason, "message", "rejected")
            self._scheduler.retire_unadmitted_request(req)
            self._work.fail(task, str(reason), bad_request=True)
        elif not self._restored(task, req):
            self._scheduler.retire_unadmitted_request(req)
        else:
            if self._joining is None:
                req.sampling_params.max_new_tokens = 1
            # It never enters a queue of SGLang's: it waits from when it reached the pool. Both
            # clocks are the system's monotonic one.
            req.time_stats.wait_queue_entry_time = task.arrival_s
            task.req = req
        return True

    def _restored(self, task: ChunkTask, req: Req) -> bool:
        """Put a request's earlier output back; False where that fails the task."""
        try:
            if task.output is not None:
                restore(self._scheduler, req, task.output)
        except Exception as error:
            logger.exception("%s cannot go on from its output", task.rid)
            words = f"the request could not go on from its output: {error}: send it again"
            req.set_finish_with_abort(words)
            self._work.fail(task, words, bad_request=True)
            return False
        return True

    def gives_back(self, req: Req) -> bool:
        """Whether a request that SGLang has retracted goes back to the controller, with its output.

        A short one stays: its prefill blocks the loop no longer than another short prompt's, and
        this instance's prefix cache may still have its prompt.
        """
        request = self._admitted.of(req)
        long = len(req.origin_input_ids) + len(req.output_ids) > self._stock_tokens
        if request is None or not long or req.to_finish is not None:
            return False
        try:
            output = state_of(req)
        except StaysError as why:
            logger.info("request %s is prefilled again where it is: %s", req.rid, why)
            return False
        self._admitted.let_go(request)
        if request.seq in self._tasks:
            self._tasks[request.seq].withdrawn = True
        self._reporter.send_from_leader(Retracted, seq=request.seq, output=output)
        return True

    def _withdraw(self, task: ChunkTask) -> None:
        """The task's request is computed anew, from what its client has seen."""
        request = self._admitted.find(task.seq)
        if request is None or request.req is None:
            task.withdrawn = not task.joined  # else it has ended, or has been given back
            return
        assert self._joining is not None
        if self._joining.withdraw(request.req) or withdraw(self._scheduler, request.req):
            self._admitted.let_go(request)
            task.withdrawn = True

    def intake_over(self, rid: str) -> None:
        """SGLang has seen a request: at home it was adopted, waits for its grammar, or is refused.

        Where SGLang answers a refusal without queueing the request, nobody else would tell, and
        the task would hold up the queue for ever.
        """
        if self._moving is not None:
            self._moving.intake_over(rid)
        for task in self._awaiting(rid):
            if not task.over and not self._admitted.awaits_grammar(rid):
                self._work.fail(task, "SGLang refused the request", bad_request=True)

    def _awaiting(self, rid: str) -> list[ChunkTask]:
        """The tasks of this home that wait for SGLang's request object with that id."""
        at_home = (task for task in self._tasks.values() if task.home == self._instance)
        return [task for task in at_home if task.rid == rid and task.req is None]

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
        return not self._queue and not self._tasks and not self._admitted and not self._moving

    def step(self) -> None:
        """One turn of the scheduler's loop: poll what is under way, advance the queue, compute."""
        self.poll_writes()
        self._admitted.poll()
        self._admitted.count_waiting_from_arrival()
        self._grammars.poll()
        self._advance()
        self._worked = self._coroutines.turn()
        self._join_computed()
        if self._moving is not None:
            self._moving.step()

    def _join_computed(self) -> None:
        """Let computed prompts join SGLang's running batch; all ranks of the instance do alike.

        Prompt log-probabilities that other members compute are complete at the task's release only.
        """
        for task in self._tasks.values():
            if task.logprob_spec is None and not task.joined and self._may_join(task):
                self._join(task)

    def _may_join(self, task: ChunkTask) -> bool:
        """Whether a task's request can be decoded here."""
        computed = task.gathers and task.computed and not (task.error or task.withdrawn)
        return computed and task.answers_at(self._instance)

    def _join(self, task: ChunkTask) -> None:
        """SGLang decodes the task's request from now on, and owns its slots."""
        assert self._joining is not None
        assert task.req is not None
        task.joined = True
        prefix = task.slot_table.prefix
        self._joining.add(task.req, task.slot_table.hand_over(int(task.tokens.numel())), prefix)
        now_s = time.monotonic()
        self._admitted.join(
            StockRequest(task.seq, task.rid, task.arrival_s, req=task.req, end_s=now_s, joined=True)
        )

    @property
    def computes(self) -> bool:
        """Whether a chunk runs or is suspended here."""
        return bool(len(self._coroutines))

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
        """KV slots that chunk tasks hold here."""
        coming = self._moving.held_tokens if self._moving is not None else 0
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
            self._work.announce(item)
            return False
        if item.tokenized is None:
            return False
        self._queue.remove(item)
        self._admitted.begin(item)
        self._admit(item.tokenized)
        return True
