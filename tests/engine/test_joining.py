"""Computed prompts in SGLang's own rows, prefix tree, allocator and batches."""

from __future__ import annotations

from array import array
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.engine.joining import Joining, SlotReports, make_room, release
from sglang_cdsp.protocol.messages import SlotsTaken
from tests.engine.fake_stock import FakeReporter
from tests.engine.stock_pools import ROWS, SLOTS, VOCAB, Scheduler, options

assert options, "SGLang's options, as far as they are read here"


def computed(
    scheduler: Scheduler, joining: Joining, tokens: list[int], limit: int = 8, **options: Any
) -> Req:
    """A prompt that chunk tasks have computed: its first token is 7."""
    params = SamplingParams(max_new_tokens=limit, **options)
    params.normalize(None)
    req = Req("r", None, array("q", tokens), params, eos_token_ids={1}, vocab_size=VOCAB)
    req.output_ids.append(7)
    req.time_stats = Mock()
    slots = scheduler.token_to_kv_pool_allocator.alloc(len(tokens))
    assert slots is not None
    joining.add(req, slots)
    return req


def nobody() -> ScheduleBatch:
    return ScheduleBatch(reqs=[])


def test_a_request_has_its_row_and_the_tree_its_prompt() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    req = computed(scheduler, joining, list(range(40)))
    running = joining.admit(nobody())
    assert running.reqs == [req]
    assert running.seq_lens.tolist() == [40]
    assert req.kv.kv_committed_len == req.kv.kv_allocated_len == 40
    row = scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :40]
    assert row.unique().numel() == 40
    assert scheduler.tree_cache.protected_size() == 40
    assert scheduler.streamed == [[req]]
    assert not joining


def test_the_first_token_is_the_next_batchs_input() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    computed(scheduler, joining, [3, 4, 5])
    running = joining.admit(nobody())
    ((rows, payload), _) = scheduler.future_map.stash.call_args
    assert rows.tolist() == running.req_pool_indices.tolist()
    assert payload.bonus_tokens.tolist() == [7]


def test_a_prompt_that_the_tree_knows_keeps_one_copy() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    prompt = list(range(50))
    computed(scheduler, joining, prompt)
    running = joining.admit(nobody())
    computed(scheduler, joining, prompt)
    running = joining.admit(running)
    first, second = running.reqs
    rows = scheduler.req_to_token_pool.req_to_token
    assert torch.equal(rows[first.kv.req_pool_idx, :50], rows[second.kv.req_pool_idx, :50])
    assert scheduler.token_to_kv_pool_allocator.available_size() == SLOTS - 50


def test_who_ends_with_the_first_token_leaves_nothing_but_the_cache() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    req = computed(scheduler, joining, list(range(30)), limit=1)
    running = joining.admit(nobody())
    assert running.reqs == []
    assert req.finished()
    assert scheduler.streamed == [[req]], "its client hears of it"
    assert scheduler.free() == SLOTS
    assert scheduler.req_to_token_pool.available_size() == ROWS


def test_an_abort_before_the_row_ends_it_when_it_gets_one() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    aborted = computed(scheduler, joining, list(range(30)))
    joining.abort("x", everything=False)
    joining.abort("r", everything=False)
    running = joining.admit(nobody())
    assert running.reqs == []
    assert isinstance(aborted.finished_reason, FINISH_ABORT)
    assert scheduler.free() == SLOTS


@pytest.mark.parametrize("max_running", [2, 100])
def test_rows_are_given_first_come_first_served(max_running: int) -> None:
    scheduler = Scheduler(max_running=max_running)
    joining = Joining(scheduler)
    reqs = [computed(scheduler, joining, [n, 3, 4]) for n in range(10, 16)]
    running = joining.admit(nobody())
    most = min(ROWS, max_running)
    assert running.reqs == reqs[:most]
    assert joining.reqs == reqs[most:]
    running = joining.admit(running)
    assert joining.reqs == reqs[most:]
    for req in running.reqs[:1]:
        req.to_finish = FINISH_ABORT()
        req.update_finish_state()
        release(req, scheduler.tree_cache)
    running.filter_batch()
    running = joining.admit(running)
    assert running.reqs[-1] is reqs[most]


def test_cached_prompts_make_room_for_chunks() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    computed(scheduler, joining, list(range(30)) * 4, limit=1)
    joining.admit(nobody())
    assert scheduler.token_to_kv_pool_allocator.available_size() == SLOTS - 120
    assert make_room(scheduler, SLOTS)
    assert not make_room(scheduler, SLOTS + 1)
    assert scheduler.token_to_kv_pool_allocator.available_size() == SLOTS


def test_what_requests_hold_is_told_once() -> None:
    scheduler = Scheduler()
    joining = Joining(scheduler)
    reporter: Any = FakeReporter()
    now_s = [0.0]
    reports = SlotReports(scheduler, reporter, SLOTS, lambda: now_s[0])
    reports.tell(0, None)
    assert reporter.said == []
    computed(scheduler, joining, list(range(40)))
    reports.tell(40, None)
    assert reporter.said == [], "a chunk task's slots are none of SGLang's requests'"
    joining.admit(nobody())
    for _ in range(3):
        now_s[0] += 1.0
        reports.tell(0, 0.02)
    assert reporter.said == [(SlotsTaken, {"tokens": 40, "step_s": 0.02})]
    assert cast(Any, scheduler.tree_cache).evictable_size() == 0
