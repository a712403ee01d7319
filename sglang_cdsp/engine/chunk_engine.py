"""An instance's queue of tasks: it starts them in the pool's order and runs their chunks.

The controller decides go or drop for every chunk once all members are ready, so every member
acts alike at the same chunk boundary. All ranks of an instance receive the same orders in the
same loop iteration (SGLang's broadcast), so nothing is negotiated among them either.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.engine import prompt_logprobs, sampling
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.grammars import GrammarChecks
from sglang_cdsp.engine.holdings import Holdings
from sglang_cdsp.engine.layout import plan_layout
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.shard_runner import ShardRunner
from sglang_cdsp.engine.tasks import ChunkTask, Turn
from sglang_cdsp.engine.turns import Turns, take_compiling
from sglang_cdsp.engine.writes import poll_writes, start_write
from sglang_cdsp.pool.messages import (
    CancelOrder,
    ChunkDone,
    Drained,
    Failed,
    FirstToken,
    GoOrder,
    GrammarOrder,
    LogprobOrder,
    LogprobPart,
    MeshOrder,
    PeerOrder,
    PlanOrder,
    PromptLogprobs,
    Ready,
    Released,
    ReleaseOrder,
    RoomOrder,
    TurnEnded,
    TurnOrder,
    WriteLost,
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
        runner: ShardRunner,
        agreement: Agreement,
        admit: Callable[[Any], None],
        abort: Callable[[str], None],
    ) -> None:
        """``admit`` hands a one-instance request to SGLang's own intake, ``abort`` ends one."""
        self._scheduler = scheduler
        self._manager = manager
        self._reporter = reporter
        self._runner = runner
        self._agreement = agreement
        self._admit = admit
        self._me = reporter.instance
        self._page = int(scheduler.token_to_kv_pool_allocator.page_size)
        self._queue: deque[ChunkTask | Turn] = deque()
        self._tasks: dict[int, ChunkTask] = {}
        self._turns = Turns(scheduler, reporter, abort)
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
            holdings=Holdings(self._scheduler.token_to_kv_pool_allocator, self._page),
            next_chunk=next(c.index for c in layouts if self._me in c.group),
            wish=order.logprobs,
        )
        self._tasks[order.seq] = task
        self._queue.append(task)

    def on_turn(self, order: TurnOrder) -> None:
        """A one-instance request joins the queue; the request itself follows."""
        self._queue.append(Turn(order.seq, order.rid or ""))

    def on_cancel(self, order: CancelOrder) -> None:
        """Abort a one-instance request, whether SGLang has it already or not."""
        for entry in [e for e in self._queue if isinstance(e, Turn) and e.seq == order.seq]:
            self._forget(entry)
            return
        self._turns.cancel(order.seq)

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
        start_s, part, error = time.monotonic(), None, ""
        try:
            part = self._run_chunk(task, order.chunk)
        except Exception as failure:
            logger.exception("chunk %d of %s failed", order.chunk, task.rid)
            error = f"chunk {order.chunk} failed on instance {self._me}: {failure}"
        error = self._agreement.reach(error)
        if error:
            self._chunk_failed(task, order.chunk, error)
        else:
            self._chunk_done(task, order.chunk, start_s, part)

    def on_mesh(self, order: MeshOrder) -> None:
        """Make new links; returns when every instance has."""
        self._runner.relink(order.epoch)

    def on_release(self, order: ReleaseOrder) -> None:
        """Every holder's writes have drained: free the slots and answer the client at home."""
        task = self._tasks.pop(order.seq, None)
        if task is None:
            return
        task.over = True
        if task in self._queue:
            self._queue.remove(task)
        task.holdings.clear()
        if task.req is None and task.home == self._me and not task.probe:
            task.req = take_compiling(self._scheduler, task.rid)
        if task.req is not None:
            error = order.error or self._collect_logprobs(task)
            sampling.retire(self._scheduler, task.req, error, silent=order.silent)
        if task.room is not None:
            self._manager.forget_room(task.room)
        free = self._scheduler.token_to_kv_pool_allocator.available_size()
        self._reporter.lead(Released, seq=order.seq, free_tokens=int(free))

    def _collect_logprobs(self, task: ChunkTask) -> str:
        """Put the prompt's log-probabilities into home's request; "" or what went wrong."""
        if task.wish is None:
            return ""
        assert task.req is not None
        try:
            prompt_logprobs.assemble(self._scheduler, task.req, task.logprobs)
        except Exception as error:
            logger.exception("prompt log-probabilities of %s are incomplete", task.rid)
            return f"the prompt's log-probabilities are incomplete: {error!r}"
        return ""

    # -- SGLang's side --------------------------------------------------------------------

    def holds_back(self, request: Any) -> bool:
        """Keep a request whose turn has not come; False for a request that is not ours."""
        for entry in self._queue:
            if isinstance(entry, Turn) and entry.rid == request.rid and entry.request is None:
                entry.request = request
                return True
        return False

    def abort_turns(self, rid: str, *, everything: bool) -> None:
        """Forget one-instance requests that SGLang has not been given yet."""
        for entry in [e for e in self._queue if isinstance(e, Turn)]:
            if everything or entry.rid.startswith(rid):
                self._forget(entry)

    def _forget(self, turn: Turn) -> None:
        self._queue.remove(turn)
        self._reporter.lead(TurnEnded, seq=turn.seq, start_s=None, end_s=None, error="aborted")

    def adopt(self, req: Req) -> bool:
        """Take SGLang's request object at home; False for a request of the stock path."""
        for task in self._tasks.values():
            if task.rid == req.rid and task.home == self._me and task.req is None:
                if req.to_finish is not None or req.finished():
                    reason = getattr(req.to_finish or req.finished_reason, "message", "rejected")
                    self._scheduler.retire_unadmitted_request(req)
                    self._fail(task, str(reason), bad_request=True)
                    return True
                req.sampling_params.max_new_tokens = 1
                task.req = req
                return True
        self._turns.adopt(req)
        return False

    def intake_over(self, rid: str) -> None:
        """SGLang has seen a request: at home it was adopted, waits for its grammar, or is refused.

        Where SGLang answers a refusal without queueing the request, nobody else would tell, and
        the task would hold up the queue for ever.
        """
        for task in self._tasks.values():
            at_home = task.rid == rid and task.home == self._me and not task.over
            if at_home and task.req is None and not self._turns.awaits_grammar(rid):
                self._fail(task, "SGLang refused the request", bad_request=True)

    def stamp_start(self, reqs: list[Req]) -> None:
        """A stock batch starts."""
        self._turns.stamp_start(reqs)

    def stamp_end(self, reqs: list[Req]) -> None:
        """A stock batch's results are in."""
        self._turns.stamp_end(reqs)

    @property
    def idle(self) -> bool:
        """Whether the engine holds nothing: no slots, no queue, no write in flight."""
        return not self._queue and not self._tasks and not self._turns

    def step(self) -> None:
        """One turn of the scheduler's loop: poll writes, advance the queue."""
        for task in list(self._tasks.values()):
            self._poll_task(task)
        self._turns.poll()
        self._grammars.poll()
        while self._queue:
            head = self._queue[0]
            if isinstance(head, ChunkTask):
                if head.over:
                    self._queue.popleft()
                    continue
                self._announce(head)
                return
            if head.request is None:
                return
            self._queue.popleft()
            self._turns.begin(head)
            self._admit(head.request)

    # -- the work -------------------------------------------------------------------------

    def _announce(self, task: ChunkTask) -> None:
        """Say that the head task's next chunk can start, once everything for it is here."""
        if task.announced or task.error or self._turns.prefilling():
            return
        at_home = task.home == self._me and not task.probe
        if at_home and task.req is None:
            return
        if (
            task.room is not None
            and self._reporter.leads
            and not self._manager.knows_room(task.room)
        ):
            return
        chunk = task.next_chunk
        if at_home and task.is_final(chunk):
            assert task.req is not None
            if not self._scheduler.disagg_prefill_bootstrap_queue.ensure_metadata_buffer(task.req):
                return
        if task.prepared != chunk:
            try:
                self._prepare(task, chunk)
            except Exception as error:
                self._fail(task, str(error))
                return
        task.announced = True
        self._reporter.lead(Ready, seq=task.seq, chunk=chunk)

    def _prepare(self, task: ChunkTask, chunk: int) -> None:
        """Allocate the slots of a chunk before anybody depends on them."""
        layout = task.layouts[chunk]
        incoming = [move.span for move in layout.moves if move.dst == self._me]
        task.holdings.take([*incoming, *layout.shard(self._me)])
        task.prepared = chunk

    def _run_chunk(self, task: ChunkTask, chunk: int) -> LogprobPart | None:
        final = task.is_final(chunk)
        if task.room is not None:
            self._manager.await_room(task.room)
        if final and task.req is not None:
            task.req.time_stats.set_forward_entry_time()
        part = self._runner.run(task, chunk)
        if final and task.req is not None:
            self._reporter.lead(FirstToken, seq=task.seq)
        if task.room is not None:
            start_write(self._manager, self._scheduler, task, chunk, self._me)
        leaving = [move.span for move in task.layouts[chunk].moves if move.src == self._me]
        if leaving:
            poll_writes(self._manager, task, up_to=chunk, wait=True)
            task.holdings.drop(leaving)
        return part

    def _chunk_done(
        self, task: ChunkTask, chunk: int, start_s: float, part: LogprobPart | None
    ) -> None:
        if part is not None and task.home == self._me:
            task.logprobs.append(part)
        elif part is not None:
            self._reporter.lead(PromptLogprobs, part=part)
        task.announced = False
        task.over = task.is_final(chunk)
        task.next_chunk = chunk + 1
        self._reporter.lead(ChunkDone, seq=task.seq, chunk=chunk, start_s=start_s)

    def _chunk_failed(self, task: ChunkTask, chunk: int, error: str) -> None:
        task.error = error
        shared = len(task.layouts[chunk].group) > 1
        if shared:
            # Partners may wait for this instance inside the chunk: a closed link tells them.
            self._runner.close_links()
        self._reporter.send(Failed, seq=task.seq, error=error, links_broken=shared)

    def _poll_task(self, task: ChunkTask) -> None:
        """Look after a task's writes; say when it will write no more."""
        try:
            poll_writes(self._manager, task)
        except Exception as error:
            # Other ranks know nothing of it: the task goes on until the controller drops it.
            task.lost = str(error)
            self._reporter.send(WriteLost, seq=task.seq, error=task.lost)
        if task.over and not task.writes and not task.drained:
            task.drained = True
            self._reporter.send(Drained, seq=task.seq, error=task.error or task.lost)

    def _fail(self, task: ChunkTask, error: str, *, bad_request: bool = False) -> None:
        task.error = error
        self._reporter.lead(Failed, seq=task.seq, error=error, bad_request=bad_request)
