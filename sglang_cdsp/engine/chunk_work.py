"""One rank's work on a task: it gets ready for chunks, runs them, and frees what they held."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from sglang_cdsp.engine import prompt_logprobs, sampling
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.shard_runner import ShardRunner
from sglang_cdsp.engine.stock_requests import take_compiling
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.engine.writes import poll_writes, start_write
from sglang_cdsp.protocol.messages import (
    ChunkDone,
    Drained,
    Failed,
    FirstToken,
    LogprobPart,
    PromptLogprobs,
    Ready,
    Released,
    WriteLost,
)

if TYPE_CHECKING:
    from sglang_cdsp.transfer.manager import PoolKVManager

logger = logging.getLogger(__name__)


class ChunkWork:
    """See the module's text. Which task is worked on is not decided here."""

    def __init__(
        self,
        scheduler: Any,
        manager: PoolKVManager,
        reporter: Reporter,
        runner: ShardRunner,
        agreement: Agreement,
    ) -> None:
        self._scheduler = scheduler
        self._manager = manager
        self._reporter = reporter
        self._runner = runner
        self._agreement = agreement
        self._me = reporter.instance

    def announce(self, task: ChunkTask) -> None:
        """Say that the task's next chunk can start, once everything for it is here."""
        if task.announced or task.error:
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
                self.fail(task, str(error))
                return
        task.announced = True
        self._reporter.send_from_leader(Ready, seq=task.seq, chunk=chunk)

    def _prepare(self, task: ChunkTask, chunk: int) -> None:
        """Allocate the slots of a chunk before anybody depends on them."""
        layout = task.layouts[chunk]
        incoming = [move.span for move in layout.moves if move.dst == self._me]
        task.slot_table.take([*incoming, *layout.shard(self._me)])
        task.prepared = chunk

    def run(self, task: ChunkTask, chunk: int) -> None:
        """Run a chunk and report how it went; all ranks of the instance come out alike."""
        start_s, part, error = time.monotonic(), None, ""
        try:
            part = self._run_chunk(task, chunk)
        except Exception as failure:
            logger.exception("chunk %d of %s failed", chunk, task.rid)
            error = f"chunk {chunk} failed on instance {self._me}: {failure}"
        error = self._agreement.reach(error)
        if error:
            self._chunk_failed(task, chunk, error)
        else:
            self._chunk_done(task, chunk, start_s, part)

    def _run_chunk(self, task: ChunkTask, chunk: int) -> LogprobPart | None:
        final = task.is_final(chunk)
        failure = ""
        if task.room is not None:
            try:
                self._manager.await_room(task.room)
            except Exception as error:
                failure = str(error)
        if final and task.req is not None:
            task.req.time_stats.set_forward_entry_time()
        part = self._runner.run(task, chunk, failure)
        if final and task.req is not None:
            self._reporter.send_from_leader(FirstToken, seq=task.seq)
        if task.room is not None:
            start_write(self._manager, self._scheduler, task, chunk, self._me)
        leaving = [move.span for move in task.layouts[chunk].moves if move.src == self._me]
        if leaving:
            poll_writes(self._manager, task, up_to=chunk, wait=True)
            task.slot_table.drop(leaving)
        return part

    def _chunk_done(
        self, task: ChunkTask, chunk: int, start_s: float, part: LogprobPart | None
    ) -> None:
        if part is not None and task.home == self._me:
            task.logprobs.append(part)
        elif part is not None:
            self._reporter.send_from_leader(PromptLogprobs, part=part)
        task.announced = False
        task.over = task.is_final(chunk)
        task.next_chunk = chunk + 1
        self._reporter.send_from_leader(ChunkDone, seq=task.seq, chunk=chunk, start_s=start_s)

    def _chunk_failed(self, task: ChunkTask, chunk: int, error: str) -> None:
        task.error = error
        shared = len(task.layouts[chunk].group) > 1
        if shared:
            self._runner.close_links()
        self._reporter.send(Failed, seq=task.seq, error=error, links_broken=shared)

    def poll(self, task: ChunkTask) -> None:
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

    def fail(self, task: ChunkTask, error: str, *, bad_request: bool = False) -> None:
        """The task cannot go on here; every rank of the instance finds out alike."""
        task.error = error
        self._reporter.send_from_leader(Failed, seq=task.seq, error=error, bad_request=bad_request)

    def release(self, task: ChunkTask, error: str, *, silent: bool) -> None:
        """Every holder's writes have drained: free the slots and answer the client at home."""
        task.slot_table.clear()
        if task.req is None and task.home == self._me and not task.probe:
            task.req = take_compiling(self._scheduler, task.rid)
        if task.req is not None:
            error = error or self._collect_logprobs(task)
            sampling.retire(self._scheduler, task.req, error, silent=silent)
        if task.room is not None:
            self._manager.forget_room(task.room)
        free = self._scheduler.token_to_kv_pool_allocator.available_size()
        self._reporter.send_from_leader(Released, seq=task.seq, free_tokens=int(free))

    def _collect_logprobs(self, task: ChunkTask) -> str:
        """Put the prompt's log-probabilities into home's request; "" or what went wrong."""
        if task.spec is None:
            return ""
        assert task.req is not None
        try:
            prompt_logprobs.assemble(self._scheduler, task.req, task.logprobs)
        except Exception as error:
            logger.exception("prompt log-probabilities of %s are incomplete", task.rid)
            return f"the prompt's log-probabilities are incomplete: {error!r}"
        return ""
