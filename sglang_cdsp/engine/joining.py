"""Prompts that chunk tasks have computed become requests of SGLang's running batch.

They join as a disaggregated decode server admits a request whose KV has arrived: a row of
``req_to_token``, the root of the prefix tree as prefix, a batch that never enters a forward. From
then on every token, radix insertion, retraction and abort is SGLang's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.disaggregation.decode import _bind_root_prefix
from sglang.srt.managers.schedule_batch import FINISH_ABORT, ScheduleBatch
from sglang.srt.mem_cache.common import evict_from_tree_cache, release_kv_cache

from sglang_cdsp import releases
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.stock import JoinedScheduler
from sglang_cdsp.protocol.messages import SlotsTaken

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

TELL_EVERY_S = 0.1


@dataclass(frozen=True)
class _Computed:
    """A prompt that waits for a row.

    Attributes:
        req: SGLang's request, with its first token.
        slots: KV slots of the whole prompt by position, int64 ``[L]``; the request's own.
    """

    req: Req
    slots: torch.Tensor


class Joining:
    """Computed prompts of one rank on their way into SGLang's running batch."""

    def __init__(self, scheduler: JoinedScheduler) -> None:
        """``scheduler`` is SGLang's, of a server that decodes."""
        self._scheduler = scheduler
        self._waiting: deque[_Computed] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def reqs(self) -> list[Req]:
        """Requests that have no row yet."""
        return [computed.req for computed in self._waiting]

    def add(self, req: Req, slots: torch.Tensor) -> None:
        """A prompt is computed: its request owns ``slots``, int64 ``[L]``, from now on."""
        self._waiting.append(_Computed(req, slots))

    def abort(self, rid: str, *, everything: bool) -> None:
        """End the requests whose id begins with ``rid``, or all, when they get their row."""
        for computed in self._waiting:
            if everything or computed.req.rid.startswith(rid):
                computed.req.to_finish = FINISH_ABORT()

    def admit(self, running: Any) -> Any:
        """Let those join that there are rows for, first come first.

        Args:
            running: SGLang's running batch.

        Returns:
            The running batch with them in it.
        """
        batch = self._batch(self._rows(running))
        if batch is None:
            return running
        self._settle(batch)
        if batch.is_empty():
            return running
        if running.is_empty():
            return batch
        running.merge_batch(batch)
        return running

    def _rows(self, running: Any) -> int:
        """How many requests may join now."""
        scheduler = self._scheduler
        free = min(
            scheduler.req_to_token_pool.available_size(),
            scheduler.max_running_requests - running.batch_size(),
        )
        return max(0, min(len(self._waiting), int(free)))

    def _batch(self, count: int) -> Any:
        """SGLang's batch of the first ``count`` of them, None for none."""
        if not count:
            return None
        scheduler = self._scheduler
        computed = [self._waiting.popleft() for _ in range(count)]
        for one in computed:
            self._give_row(one)
        batch = ScheduleBatch.init_new(
            [one.req for one in computed],
            scheduler.req_to_token_pool,
            scheduler.token_to_kv_pool_allocator,
            scheduler.tree_cache,
            scheduler.model_config,
            scheduler.enable_overlap,
            scheduler.spec_algorithm,
        )
        batch.prepare_for_prebuilt()
        if scheduler.enable_overlap:
            # A finished request may still have a forward in flight that reads its old row.
            scheduler.schedule_stream.wait_stream(scheduler.forward_stream)
        return batch

    def _give_row(self, computed: _Computed) -> None:
        """The request's row lists its slots; no prefix of it is the tree's yet."""
        req, tokens = computed.req, int(computed.slots.numel())
        pool, tree = self._scheduler.req_to_token_pool, self._scheduler.tree_cache
        assert pool.alloc([req]) is not None
        pool.write((req.kv.req_pool_idx, slice(0, tokens)), computed.slots.to(torch.int32))
        req.kv.kv_committed_len = req.kv.kv_allocated_len = tokens
        shares = shares_prefixes(tree)
        if shares:
            _bind_root_prefix(req, tree)
        req.init_next_round_input(None if shares else tree)
        # The tree may key the prompt, whose KV is there; the first token has none yet.
        if releases.kv_is_checkpointed():
            req.extend_end = tokens
        else:
            req.set_extend_range(0, tokens)

    def _settle(self, batch: Any) -> None:
        """What SGLang does once a prefill's result is known: insert, finish, stream."""
        scheduler = self._scheduler
        batch.process_prebuilt(scheduler.future_map)
        results = scheduler.batch_result_processor
        for req in batch.reqs:
            req.time_stats.set_prefill_finished_time()
            results._maybe_update_reasoning_tokens(req, req.output_ids[-1])
            req.update_finish_state()
            if req.finished():
                release(req, scheduler.tree_cache)
                req.time_stats.set_completion_time()
        scheduler.output_streamer.stream_output(batch.reqs, batch.return_logprob, None)
        batch.filter_batch()


def shares_prefixes(tree: Any) -> bool:
    """Whether a prefix cache keeps anything for other requests."""
    if releases.kv_is_checkpointed():
        return bool(tree.supports_prefix_sharing())
    return not tree.is_chunk_cache()


def release(req: Req, tree: Any) -> None:
    """Give an ended request's row and slots back; the tree keeps what it can."""
    if releases.kv_is_checkpointed():
        release_kv_cache(req, tree, checkpoint=True)
    else:
        release_kv_cache(req, tree)


def make_room(scheduler: JoinedScheduler, tokens: int) -> bool:
    """Evict cached prefixes until ``tokens`` slots are free; whether they are.

    Args:
        tokens: whole pages of them.
    """
    allocator = scheduler.token_to_kv_pool_allocator
    if allocator.available_size() < tokens:
        evict_from_tree_cache(scheduler.tree_cache, tokens)
    return bool(allocator.available_size() >= tokens)


class SlotReports:
    """Tells the controller now and then how many KV slots SGLang's own requests hold here."""

    def __init__(
        self,
        scheduler: JoinedScheduler,
        reporter: Reporter,
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``capacity``: KV slots of the instance; ``clock`` gives monotonic seconds."""
        self._scheduler = scheduler
        self._reporter = reporter
        self._capacity = capacity
        self._clock = clock
        self._told, self._told_s = 0, -TELL_EVERY_S

    def tell(self, by_tasks: int, step_s: float | None) -> None:
        """Tell what is neither free, nor cached for nobody, nor among ``by_tasks``, if it is new.

        Args:
            by_tasks: KV slots that chunk tasks hold.
            step_s: what a decode step takes, seconds; None before the first.
        """
        now_s = self._clock()
        if now_s < self._told_s + TELL_EVERY_S:
            return
        scheduler = self._scheduler
        free = scheduler.token_to_kv_pool_allocator.available_size()
        taken = self._capacity - free - scheduler.tree_cache.evictable_size() - by_tasks
        if taken != self._told:
            self._told, self._told_s = int(taken), now_s
            self._reporter.send_from_leader(SlotsTaken, tokens=self._told, step_s=step_s)
