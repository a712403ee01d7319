"""One rank's work on a task: it gets ready for chunks, runs them, and frees what they held.

A chunk is a coroutine: it gives way at every layer and wherever it would wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_cdsp.engine import prompt_logprobs, sampling
from sglang_cdsp.engine.coroutines import Coroutines, StoppedError
from sglang_cdsp.engine.kept import Keep
from sglang_cdsp.engine.prefixes import Match
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.shard_runner import ShardDone, ShardRunner
from sglang_cdsp.engine.stock import StockScheduler
from sglang_cdsp.engine.stock_requests import take_compiling
from sglang_cdsp.engine.tasks import ChunkTask, Short
from sglang_cdsp.engine.writes import (
    begin_write,
    cancel_writes,
    finish_write,
    poll_writes,
    written_before,
)
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.spans import tokens_of
from sglang_cdsp.protocol.messages import (
    ChunkDone,
    Drained,
    Failed,
    FirstToken,
    GoOrder,
    LogprobPart,
    PromptLogprobs,
    Ready,
    Released,
    RestOrder,
    WriteLost,
)
from sglang_cdsp.transfer.failures import TransferFailed

if TYPE_CHECKING:
    from sglang_cdsp.parallel.chunk_layout import ChunkLayout
    from sglang_cdsp.transfer.chunk_write import ChunkWrite
    from sglang_cdsp.transfer.manager import PoolKVManager

logger = logging.getLogger(__name__)

ROOM_TIMEOUT_S = 5.0
"""How long a rank may take to hear of decode's pages after its instance's leader has."""

LOOK_AGAIN = 64
"""Turns after which a prefix is looked for again although nothing seems to have changed."""

ORDER_S = 0.02
"""How long others stand still for the controller's answer about a task that passes or is over."""


def nothing(layer_id: int) -> None:
    """What follows when a layer's KV is stored and nobody wants it."""


class ChunkWork:
    """What one rank does for a task: prepare a chunk, run it, look after its writes, release it.

    Which task is worked on is not decided here.
    """

    def __init__(
        self,
        scheduler: StockScheduler,
        manager: PoolKVManager | None,
        reporter: Reporter,
        runner: ShardRunner,
        coroutines: Coroutines,
        starts: Callable[[], None],
        computed: Callable[[int], None],
        make_room: Callable[[int], bool] | None = None,
        match: Match | None = None,
        copying: Callable[[int], bool] = lambda copy: False,
        keep: Keep | None = None,
    ) -> None:
        """Work on tasks of ``scheduler``'s.

        Args:
            starts: hears of each forward.
            computed: hears how many tokens a finished shard had.
            make_room: where SGLang's own requests hold slots too: sees to it that so many are
                free, if it can.
            match: finds cached prefixes; None where no plan starts from one.
            copying: whether a copy of a prefix to here is under way.
            keep: puts a prompt that decode has into the prefix cache; None where nothing is kept.
        """
        self._copying = copying
        self._keep = keep
        self._make_room = make_room
        self._match = match
        self._scheduler = scheduler
        self._decode = manager
        self._reporter = reporter
        self._runner = runner
        self._coroutines = coroutines
        self._starts = starts
        self._computed = computed
        self._instance = reporter.instance

    @property
    def _manager(self) -> PoolKVManager:
        """Takes KV to decode servers; only for tasks with a room."""
        assert self._decode is not None
        return self._decode

    # -- before a chunk -------------------------------------------------------------------

    def announce(self, task: ChunkTask, *, prefix_comes: bool = False) -> None:
        """Say that the task's next chunk can start, once everything for it is here.

        All ranks of the instance get ready in the same turn, since they touch the prefix cache
        alike. Decode's pages come to each by itself, so that only the leader waits for them.

        Args:
            prefix_comes: the prefix that it starts from will be cached soon, if it is not yet.
        """
        if task.announced or task.error or not self._has_arrived(task):
            return
        if self._is_short_still(task):
            return
        chunk = task.next_chunk
        try:
            found = self._find_prefix(task)
            missed = found is not None and found < task.reused
            if missed and prefix_comes:
                return
            if task.prepared != chunk and not missed and not self._take_slots(task):
                self._leave_prefix(task)
                task.short = Short(self._free()) if task.starts_from_cache(self._instance) else None
                return
        except Exception as error:
            self.fail(task, str(error))
            return
        if not self._room_is_known(task.room):
            return
        task.announced = True
        if task.passes:
            self._await_order(task)
        self._reporter.send_from_leader(
            Ready, seq=task.seq, chunk=chunk, revision=task.revision, found=found
        )

    def _find_prefix(self, task: ChunkTask) -> int | None:
        """Find and lock the cached prefix that a task's plan starts from.

        One that is shorter than the plan says is left alone: the plan cannot be carried out.

        Returns:
            Tokens that were found; None where the task needs none here, or has it already.
        """
        if self._match is None or not task.starts_from_cache(self._instance):
            return None
        assert task.req is not None
        prefix = self._match(task.req, task.tokens[: task.reused])
        found = 0 if prefix is None else prefix.tokens
        if prefix is not None and found == task.reused:
            task.slot_table.use(prefix)
            task.matched = True
        elif prefix is not None:
            prefix.let_go()
        return found

    def _leave_prefix(self, task: ChunkTask) -> None:
        """A task that waits for slots holds no lock: who has them may need to evict."""
        if task.matched and not task.started:
            task.slot_table.clear()
            task.matched = False

    def _is_short_still(self, task: ChunkTask) -> bool:
        """Whether a task's slots were not there, and nothing has changed since.

        Its prefix is not looked for again meanwhile, which takes as long as it is. Who is free says
        all but never nothing of a change; so now and then it is looked for all the same.
        """
        if task.short is None or task.short.free != self._free():
            return False
        task.short.turns += 1
        return task.short.turns % LOOK_AGAIN != 0

    def _free(self) -> tuple[int, int]:
        """KV slots that are free, and those that could be evicted."""
        free = self._scheduler.token_to_kv_pool_allocator.available_size()
        return int(free), int(self._scheduler.tree_cache.evictable_size())

    def _await_order(self, task: ChunkTask) -> None:
        """Let others stand still for a moment, until the controller has answered.

        A layer of a long chunk in between would cost the task as much.
        """
        task.awaited_until_s = time.monotonic() + ORDER_S

    def _has_arrived(self, task: ChunkTask) -> bool:
        """Whether the request, a metadata buffer and the prefix that is copied to here are here, as
        far as they are needed."""
        answers = task.answers_at(self._instance)
        if answers and task.copy is not None and self._copying(task.copy):
            return False
        if answers and task.req is None:
            return False
        # A server that decodes itself hands no metadata over.
        if task.joins or not (answers and task.is_final(task.next_chunk)):
            return True
        return self._scheduler.disagg_prefill_bootstrap_queue.ensure_metadata_buffer(task.req)

    def _room_is_known(self, room: int | None) -> bool:
        """Whether decode's pages are here; the leader asks, who speaks for its instance."""
        return room is None or not self._reporter.leads or self._manager.knows_room(room)

    def _take_slots(self, task: ChunkTask) -> bool:
        """Allocate the slots of the next chunk before anybody depends on them.

        Returns:
            False while SGLang's own requests hold too many: they end, and the task is asked again.
        """
        need = task.slots_to_take(self._instance)
        if self._make_room is not None and not self._make_room(need):
            return False
        task.take_slots(self._instance)
        return True

    def give_back(self, task: ChunkTask) -> None:
        """Free the slots of a task that only waits: requests that decode are short of them.

        It takes them again when it starts; those of chunks that have run stay.
        """
        if task.gathers and not task.started and task.prepared is not None:
            # A prefix that was announced stays: the chunk may start at any moment.
            task.slot_table.give_back()
            task.prepared = None

    # -- a chunk --------------------------------------------------------------------------

    def begin(self, task: ChunkTask, order: GoOrder) -> None:
        """Start a chunk: it runs in the engine's turns and gives way inside."""
        task.started = True
        task.awaited_until_s = 0.0
        task.running = self._coroutines.start(
            f"{task.rid} chunk {order.chunk}",
            (-task.urgency, task.seq),
            lambda: self._run(task, order),
        )

    def stop(self, task: ChunkTask, reason: str = "") -> None:
        """End a task here, inside a chunk too; all ranks of the instance do at the same layer."""
        task.over = True
        cancel_writes(task)
        if task.running is not None:
            self._coroutines.stop(task.running, reason or "the task was stopped")

    def _run(self, task: ChunkTask, order: GoOrder) -> None:
        """Run a chunk and report how it went; all ranks of the instance come out alike."""
        try:
            self._coroutines.give_way()
            start_s, before_s = time.monotonic(), self._passed_s(task)
            self._starts()
            done = self._run_chunk(task, order)
        except StoppedError as stopped:
            self._chunk_ended(task)
            if not task.over:
                self._chunk_failed(task, order.chunk, str(stopped))
            return
        # On CUDA the host starts a chunk before the device does.
        start_s = start_s if done.start_s is None else done.start_s
        passed_s = self._passed_s(task) - before_s
        self._chunk_done(task, order.chunk, start_s, passed_s, done.part)

    def _passed_s(self, task: ChunkTask) -> float:
        """Seconds in which its chunk's coroutine stood while something else was computed here."""
        return 0.0 if task.running is None else self._coroutines.passed_s(task.running)

    def _run_chunk(self, task: ChunkTask, order: GoOrder) -> ShardDone:
        """Run a chunk to its end.

        Raises:
            StoppedError: it failed or is not to go on, at all ranks alike.
        """
        try:
            self._await_slots(task, order.chunk)
            self._await_room(task)
            if task.req is not None:
                task.req.time_stats.set_forward_entry_time()  # the first call counts
            write = self._open_write(task, order.chunk)
            stored = write.layer_stored if write is not None else nothing
            done = self._runner.run(task, order, stored)
        except StoppedError:
            raise
        except Exception as failure:
            # Where a partner is gone, the fault is elsewhere.
            trace = None if isinstance(failure, LinkError) else failure
            said = "chunk %d of %s failed: %s"
            logger.error(said, order.chunk, task.rid, failure, exc_info=trace)
            self._coroutines.fail(str(failure) or repr(failure))
            raise  # not reached: fail does not return
        # The ranks agree here that all of them have come to the end.
        self._coroutines.give_way()
        if task.is_final(order.chunk) and task.req is not None:
            self._reporter.send_from_leader(FirstToken, seq=task.seq)
            if not task.joins:
                # As SGLang counts what its own batches find cached; the metadata has it, too.
                task.req.cached_tokens = task.req.cached_tokens_device = task.reused
        if write is not None:
            finish_write(self._scheduler, task, write)
        self._free_what_moved(task, order.chunk)
        return done

    def _await_slots(self, task: ChunkTask, chunk: int) -> None:
        """Give way until slots are there that were given back, alike at all ranks."""
        if task.prepared != chunk:
            self._coroutines.give_way(lambda: task.prepared == chunk or self._take_slots(task))

    def _await_room(self, task: ChunkTask) -> None:
        """Give way until decode's pages are here, which every rank gets by itself."""
        room = task.room
        if room is not None:
            due_s = time.monotonic() + ROOM_TIMEOUT_S
            self._coroutines.give_way(lambda: self._manager.room_is_here(room, due_s))

    def _open_write(self, task: ChunkTask, chunk: int) -> ChunkWrite | None:
        """The way of the chunk's KV to decode, None if decode gets nothing of it from here."""
        if task.room is None:
            return None
        return begin_write(self._manager, task, chunk, self._instance)

    def _free_what_moved(self, task: ChunkTask, chunk: int) -> None:
        """Free the slots of history that has moved away, once no write reads them."""
        leaving = [move.span for move in task.layouts[chunk].moves if move.src == self._instance]
        if task.gathers and task.is_final(chunk) and task.home == self._instance:
            return  # it is to hold the whole prompt
        if leaving:
            self._coroutines.give_way(lambda: self._written_before(task, chunk))
            task.slot_table.drop(leaving)

    def _written_before(self, task: ChunkTask, chunk: int) -> bool:
        """Whether no earlier write reads what has moved away."""
        try:
            return written_before(task, chunk)
        except TransferFailed as error:
            # What is raised here fails the chunk, and no poll of the task tells of it again.
            task.uncertain = task.uncertain or error.uncertain
            raise

    def _chunk_done(
        self,
        task: ChunkTask,
        chunk: int,
        start_s: float,
        passed_s: float,
        part: LogprobPart | None,
    ) -> None:
        gave_way = 0 if task.running is None else task.running.gave_way
        self._chunk_ended(task)
        if part is not None and task.home == self._instance:
            task.logprob_parts.append(part)
        elif part is not None:
            self._reporter.send_from_leader(PromptLogprobs, part=part)
        self._computed(sum(span.tokens for span in task.layouts[chunk].shard(self._instance)))
        task.announced = False
        task.over = task.is_final(chunk)
        task.next_chunk = chunk + 1
        if task.over:
            self._await_order(task)
        moves = [m.span for m in task.layouts[chunk].moves if m.src == self._instance]
        traffic = self._runner.traffic()
        self._reporter.send_from_leader(
            ChunkDone,
            seq=task.seq,
            chunk=chunk,
            start_s=start_s,
            passed_s=passed_s,
            gave_way=gave_way,
            sent_bytes=traffic.sent_bytes,
            waited_s=traffic.waited_s,
            moved_tokens=tokens_of(moves),
        )

    def _chunk_ended(self, task: ChunkTask) -> None:
        """Nothing is sent or expected any more on the chunk's links."""
        task.running = None
        if task.lane is not None:
            task.lane.close()

    def _chunk_failed(self, task: ChunkTask, chunk: int, failure: str) -> None:
        cancel_writes(task)
        task.error = f"chunk {chunk} failed on instance {self._instance}: {failure}"
        self._reporter.send_from_leader(
            Failed, seq=task.seq, error=task.error, revision=task.revision
        )

    # -- after it -------------------------------------------------------------------------

    def poll(self, task: ChunkTask) -> None:
        """Look after a task's writes; say when it will write no more."""
        try:
            poll_writes(task)
        except Exception as error:
            # Other ranks know nothing of it: the task goes on until the controller drops it.
            task.lost = str(error)
            task.uncertain = task.uncertain or getattr(error, "uncertain", False)
            self._reporter.send(WriteLost, seq=task.seq, error=task.lost, uncertain=task.uncertain)
        if task.lane is not None and task.running is None and task.lane.settled():
            task.lane = None
        left = task.running is None and task.lane is None
        if task.over and left and not task.writes and not task.drained:
            task.drained = True
            self._await_order(task)
            self._reporter.send(
                Drained,
                seq=task.seq,
                error=task.error or task.lost,
                uncertain=task.uncertain,
            )

    def fail(self, task: ChunkTask, error: str, *, bad_request: bool = False) -> None:
        """The task cannot go on here; every rank of the instance finds out alike."""
        task.error = error
        self._reporter.send_from_leader(
            Failed,
            seq=task.seq,
            error=error,
            bad_request=bad_request,
            revision=task.revision,
        )

    def release(self, task: ChunkTask, error: str, *, silent: bool) -> None:
        """Every holder's writes have drained: free the slots and answer the client at home."""
        self._let_go(task, error, silent=silent)
        joined = task.joined and not task.withdrawn
        self._reporter.send_from_leader(Released, seq=task.seq, joined=joined)

    def take_rest(
        self, task: ChunkTask, order: RestOrder, layouts: tuple[ChunkLayout, ...]
    ) -> None:
        """What follows the chunks that ran runs by another plan, before the first by another home.

        Who was home then gives the request back: the new one has got it, too, and answers.
        """
        was_home = task.answers_at(self._instance)
        task.take_rest(layouts, order.chunk, order.revision, self._instance)
        task.gathers = order.gathers or task.joins
        task.urgency, task.passes = order.urgency, order.passes
        if was_home and not task.answers_at(self._instance):
            self._retire(task, "", silent=True)
            task.req = None

    def forget(self, task: ChunkTask) -> None:
        """The task goes on elsewhere: free what was got ready for it here; nothing was stored."""
        task.over = True
        self._let_go(task, "", silent=True)

    def _let_go(self, task: ChunkTask, error: str, *, silent: bool) -> None:
        if not (error or silent or task.error):
            self._keep_front(task)
        task.slot_table.clear()
        if task.answers_at(self._instance) and not task.joined:
            self._retire(task, error, silent=silent)
        if task.room is not None:
            self._manager.forget_room(task.room)

    def _keep_front(self, task: ChunkTask) -> None:
        """At home decode has the prompt now: the prefix cache keeps what home has of it.

        That is all of it where home has gathered it, else what it has without a gap from the first
        token on. Nothing writes to decode from these slots any more, so that the cache may free
        those of which it has a copy.
        """
        if self._keep is None or task.joins or not task.computed:
            return
        if task.answers_at(self._instance) and task.req is not None:
            self._keep(task.req, task.slot_table)

    def _retire(self, task: ChunkTask, error: str, *, silent: bool) -> None:
        """Home's request ends here, wherever SGLang has it."""
        task.req = task.req or take_compiling(self._scheduler, task.rid)
        if task.req is not None:
            error = error or ("" if silent else self.collect_logprobs(task))
            sampling.retire(self._scheduler, task.req, error, silent=silent)

    def collect_logprobs(self, task: ChunkTask) -> str:
        """Put the prompt's log-probabilities into home's request; "" or what went wrong."""
        if task.logprob_spec is None:
            return ""
        assert task.req is not None
        try:
            prompt_logprobs.assemble(self._scheduler, task.req, task.logprob_parts)
        except Exception as error:
            logger.exception("prompt log-probabilities of %s are incomplete", task.rid)
            return f"the prompt's log-probabilities are incomplete: {error!r}"
        return ""
