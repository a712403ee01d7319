"""Prompts that chunk tasks have computed become requests of SGLang's running batch.

They join as a disaggregated decode server admits a request whose KV has arrived: a row of
``req_to_token``, the root of the prefix tree as prefix, a batch that never enters a forward. From
then on every token, radix insertion, retraction and abort is SGLang's. So do requests that decoded
on another instance, and those that were about to go there and stay after all.
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
from sglang_cdsp.engine.prefixes import CachedPrefix
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.req_state import recall_penalties
from sglang_cdsp.engine.stock import JoinedScheduler, StockScheduler
from sglang_cdsp.protocol.messages import SlotsTaken

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

TELL_EVERY_S = 0.1


@dataclass(frozen=True)
class _Computed:
    """A prompt that waits for a row.

    Attributes:
        req: SGLang's request, with its first token.
        slots: KV slots of the whole prompt by position, int64 ``[L]``, of output too where that has
            KV; the request's own. None where its row lists them already.
        goes_on: all of its output is known here, grammar and all; else its last token is new.
        prefix: the cached prefix to which the first of its slots belong, with its lock.
    """

    req: Req
    slots: torch.Tensor | None
    goes_on: bool = False
    prefix: CachedPrefix | None = None

    @property
    def had_output(self) -> bool:
        """Whether it has output that no forward of this batch has sampled."""
        return self.goes_on or len(self.req.output_ids) > 1


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

    def add(self, req: Req, slots: torch.Tensor, prefix: CachedPrefix | None = None) -> None:
        """A prompt is computed: its request owns ``slots``, int64 ``[L]``, from now on.

        The first of them are the cache's, if it started from a ``prefix``, whose lock it gets.
        """
        self._waiting.append(_Computed(req, slots, prefix=prefix))

    def go_on(
        self, req: Req, slots: torch.Tensor | None, prefix: CachedPrefix | None = None
    ) -> None:
        """A request goes on here that decoded before, at another home or in this row.

        Args:
            slots: of all its tokens but the last, int64 ``[L]``; None where it has its row. Those
                come first: others may be waiting for a row.
            prefix: the cached prefix to which the first of its slots belong, as in ``add``.
        """
        one = _Computed(req, slots, goes_on=True, prefix=prefix)
        if slots is None:
            self._waiting.appendleft(one)
        else:
            self._waiting.append(one)

    def abort(self, rid: str, *, everything: bool) -> None:
        """End the requests whose id begins with ``rid``, or all, when they get their row."""
        for computed in self._waiting:
            if everything or computed.req.rid.startswith(rid):
                computed.req.to_finish = FINISH_ABORT()

    def withdraw(self, req: Req) -> bool:
        """Take a request back that has no row yet, and free its slots; whether it was here."""
        for computed in self._waiting:
            if computed.req is req and computed.slots is not None:
                self._waiting.remove(computed)
                prefix, slots = computed.prefix, computed.slots
                first = prefix.tokens if prefix is not None else 0
                self._scheduler.token_to_kv_pool_allocator.free(slots[first:])
                if prefix is not None:
                    prefix.let_go()
                return True
        return False

    def admit(self, running: Any) -> Any:
        """Let those join that there are rows for, first come first.

        Args:
            running: SGLang's running batch.

        Returns:
            The running batch with them in it.
        """
        while together := self._together(running):
            batch = self._batch(together)
            self._process_prebuilt(batch)
            if not together[0].goes_on:
                self._settle(batch)
            if running.is_empty():
                running = batch
            elif not batch.is_empty():
                running.merge_batch(batch)
        return running

    def _together(self, running: Any) -> list[_Computed]:
        """Take those that may join now as one batch."""
        scheduler = self._scheduler
        places = scheduler.max_running_requests - running.batch_size()
        rows = int(scheduler.req_to_token_pool.available_size())
        together: list[_Computed] = []
        while self._waiting and len(together) < places:
            one = self._waiting[0]
            if one.slots is not None and not rows:
                break
            # One that had output is a batch of its own, whose penalties are made up for.
            if together and (one.had_output or together[0].had_output):
                break
            rows -= one.slots is not None
            together.append(self._waiting.popleft())
        return together

    def _batch(self, computed: list[_Computed]) -> Any:
        """SGLang's batch of them."""
        scheduler = self._scheduler
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
        if computed[0].had_output:
            # What was sampled last is counted with the next step.
            recall_penalties(batch, list(batch.reqs[0].output_ids[:-1]))
        if scheduler.enable_overlap:
            # A finished request may still have a forward in flight that reads its old row.
            scheduler.schedule_stream.wait_stream(scheduler.forward_stream)
        return batch

    def _give_row(self, computed: _Computed) -> None:
        """The request's row lists its slots."""
        if computed.slots is None:
            self._keep_row(computed.req)
        else:
            give_row(self._scheduler, computed.req, computed.slots, computed.prefix)

    def _keep_row(self, req: Req) -> None:
        """A request has its row still; all that it lists is there."""
        tokens = req.kv.kv_committed_len
        row = self._scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :tokens]
        req.init_next_round_input(None)
        if releases.kv_is_checkpointed():
            req.prefix_len = tokens
        else:
            req.prefix_indices = row.to(torch.int64)
        req.already_computed = tokens
        _set_extend_range(req, tokens, tokens)

    def _process_prebuilt(self, batch: Any) -> None:
        """Let a batch go on with its next step. All tokens are known to its grammars already."""
        grammars = [req.grammar for req in batch.reqs]
        for req in batch.reqs:
            req.grammar = None
        try:
            batch.process_prebuilt(self._scheduler.future_map)
        finally:
            for req, grammar in zip(batch.reqs, grammars, strict=True):
                req.grammar = grammar

    def _settle(self, batch: Any) -> None:
        """What SGLang does once a prefill's result is known: insert, finish, stream."""
        scheduler = self._scheduler
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


def give_row(
    scheduler: StockScheduler, req: Req, slots: torch.Tensor, prefix: CachedPrefix | None
) -> None:
    """A request gets a row that lists its slots; no prefix of it is the tree's but a cached one.

    Args:
        req: SGLang's, without a row; there is one for it.
        slots, prefix: as in ``fill_row``; the request's own from now on.
    """
    assert scheduler.req_to_token_pool.alloc([req]) is not None
    fill_row(req, scheduler.req_to_token_pool, scheduler.tree_cache, slots, prefix)


def fill_row(
    req: Req, pool: Any, tree: Any, slots: torch.Tensor, prefix: CachedPrefix | None
) -> None:
    """Let the row that a request has just got list its slots, as if SGLang had filled it.

    Args:
        pool: SGLang's rows.
        tree: its prefix cache.
        slots: of the request's first tokens, int64 ``[tokens]``; their KV is there.
        prefix: the cached prefix to which the first of them belong, whose lock the request gets.
    """
    tokens, first = int(slots.numel()), 0
    pool.write((req.kv.req_pool_idx, slice(0, tokens)), slots.to(torch.int32))
    req.kv.kv_committed_len = req.kv.kv_allocated_len = tokens
    shares = shares_prefixes(tree)
    if shares:
        _bind_root_prefix(req, tree)
        if prefix is not None:
            prefix.bind(req)
            first = prefix.tokens
    req.init_next_round_input(None if shares else tree)
    # The tree may key these tokens; one that was sampled has no KV yet.
    _set_extend_range(req, first, tokens)


def _set_extend_range(req: Req, start: int, tokens: int) -> None:
    """The tree may key so many tokens of a request."""
    if releases.kv_is_checkpointed():
        req.extend_end = tokens
    else:
        req.set_extend_range(start, tokens)


def shares_prefixes(tree: Any) -> bool:
    """Whether a prefix cache keeps anything for other requests."""
    if releases.kv_is_checkpointed():
        return bool(tree.supports_prefix_sharing())
    return not tree.is_chunk_cache()


def withdraw(scheduler: StockScheduler, req: Req) -> bool:
    """Take a request out of SGLang's running batch between two steps; whether it was in it.

    Its row and slots are given back. A step of it that is under way counts for nobody.
    """
    running: Any = scheduler.running_batch
    if req not in running.reqs or req.finished():
        return False
    running.filter_batch(keep_indices=[i for i, r in enumerate(running.reqs) if r is not req])
    running.batch_is_full = False
    release(req, scheduler.tree_cache, keep=False)
    req.is_retracted = True
    return True


def release(req: Req, tree: Any, *, keep: bool = True) -> None:
    """Give a request's row and slots back; with ``keep`` the tree keeps what it can."""
    if releases.kv_is_checkpointed():
        release_kv_cache(req, tree, checkpoint=keep)
    else:
        release_kv_cache(req, tree, is_insert=keep)


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
