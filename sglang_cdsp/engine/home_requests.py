"""SGLang's requests at home: from its intake into the tasks, and from these into its batches.

Home is where a task's request is sampled. SGLang's intake makes the request there; it waits with
its task until the prompt is computed, and in one server joins SGLang's running batch then. What
SGLang has retracted, or what is computed anew elsewhere, leaves that batch again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.joining import Joining, withdraw
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.req_state import StaysError, restore, state_of
from sglang_cdsp.engine.stock import StockScheduler
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.protocol.messages import ReleaseOrder, Retracted

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

logger = logging.getLogger(__name__)


class HomeRequests:
    """The requests of the tasks that one rank is home of."""

    def __init__(
        self,
        *,
        tasks: Mapping[int, ChunkTask],
        scheduler: StockScheduler,
        reporter: Reporter,
        work: ChunkWork,
        admitted: StockTracker,
        joining: Joining | None,
        moving: Moving | None,
        stock_tokens: int,
    ) -> None:
        """What it works with.

        Args:
            tasks: of this rank, by sequence number.
            admitted: the requests that SGLang itself runs.
            joining, moving, stock_tokens: as in ``ChunkEngine``.
        """
        self._tasks = tasks
        self._scheduler = scheduler
        self._reporter = reporter
        self._work = work
        self._admitted = admitted
        self._joining = joining
        self._moving = moving
        self._stock_tokens = stock_tokens

    # -- from SGLang's intake -------------------------------------------------------------

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
        instance = self._reporter.instance
        at_home = (task for task in self._tasks.values() if task.home == instance)
        return [task for task in at_home if task.rid == rid and task.req is None]

    # -- into SGLang's running batch ------------------------------------------------------

    def join_computed(self) -> None:
        """Let computed prompts join SGLang's running batch; all ranks of the instance do alike.

        Prompt log-probabilities that other members compute are complete at the task's release only.
        """
        for task in self._tasks.values():
            if task.logprob_spec is None and not task.joined and self._may_join(task):
                self._join(task)

    def join_released(self, task: ChunkTask, order: ReleaseOrder) -> str:
        """Let a task's request join that has waited for its prompt log-probabilities.

        Returns:
            Why the task cannot be answered, "" if nothing is wrong.
        """
        if task.joined or order.error or order.silent or not self._may_join(task):
            return order.error
        error = self._work.collect_logprobs(task)
        if not error:
            self._join(task)
        return error

    def _may_join(self, task: ChunkTask) -> bool:
        """Whether a task's request can be decoded here."""
        computed = task.joins and task.computed and not (task.error or task.withdrawn)
        return computed and task.answers_at(self._reporter.instance)

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

    # -- out of it ------------------------------------------------------------------------

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

    def withdraw(self, task: ChunkTask) -> None:
        """The task's request is computed anew, from what its client has seen."""
        request = self._admitted.find(task.seq)
        if request is None or request.req is None:
            task.withdrawn = not task.joined  # else it has ended, or has been given back
            return
        assert self._joining is not None
        if self._joining.withdraw(request.req) or withdraw(self._scheduler, request.req):
            self._admitted.let_go(request)
            task.withdrawn = True
