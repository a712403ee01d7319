"""Plans that start from a cached prefix: read in place, never freed, equal to computing it all."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch

from sglang_cdsp.engine.joining import Joining, release
from sglang_cdsp.engine.prefixes import CachedPrefix, match_in
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import GoOrder
from tests.engine.fake_kv import StrictAllocator
from tests.engine.one_thread import (
    INSTANCES,
    LONGEST,
    Instance,
    kv_of,
    pool_of,
    run_plan,
    task_on,
)
from tests.engine.plans import PAGE_SIZES, Chunks, plans
from tests.engine.stock_pools import CORES, SLOTS, Scheduler, options
from tests.engine.stock_prompts import PROMPT, request

assert options, "SGLang's options, as far as they are read here"


class Tree:
    """What a prefix tells of its lock."""

    def __init__(self) -> None:
        self.locks = 1

    def dec_lock_ref(self, node: Any, lock: Any) -> None:
        self.locks -= 1

    def unlock(self, lock: Any) -> None:
        """The same in SGLang 0.5.23."""
        self.locks -= 1


def cached_in(instance: Instance, chunks: Chunks, page: int) -> CachedPrefix:
    """The first tokens of a prompt as another request has left them in an instance's cache."""
    task = task_on(instance, 0, chunks, page)
    task.gathers = True
    instance.begin(task, GoOrder(seq=0, chunk=0, lane=0, serial=1), {})
    while len(instance.coroutines):
        instance.coroutines.turn()
    slots = task.slot_table.hand_over(chunks[0][0])
    return CachedPrefix(slots, "node", "lock", Tree())


@settings(max_examples=25, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(1, 12), st.integers(0, 2**32))
def test_home_ends_as_if_it_had_computed_all(
    data: st.DataObject, page: int, pages: int, seed: int
) -> None:
    chunks = data.draw(plans(page, instances=INSTANCES, longest=4))
    reused, home = pages * page, chunks[0][1][0]
    tokens = reused + sum(count for count, _ in chunks)
    if tokens > LONGEST:
        return
    draw = random.Random(seed)
    instances = pool_of(page, seed)
    prefix = cached_in(instances[home], [(reused, [home])], page)
    before = kv_of(instances[home], prefix.slots).clone()
    whole: Chunks = [(reused, [home]), *chunks]
    tasks: list[ChunkTask] = []
    for instance in instances:
        task = replace(
            task_on(instance, 0, whole, page),
            layouts=plan_layout(chunks, page, reused),
            gathers=True,
            reused=reused,
        )
        if instance.number == home:
            task.slot_table.use(prefix)
        tasks.append(task)
    for number, (_, group) in enumerate(chunks):
        order = GoOrder(seq=0, chunk=number, lane=0, serial=number + 2)
        for member in group:
            instances[member].begin(tasks[member], order, {})
        while any(len(instance.coroutines) for instance in instances):
            draw.choice(instances).coroutines.turn()
    table = tasks[home].slot_table
    assert table.prefix is prefix
    slots = table.hand_over(tokens)
    assert torch.equal(slots[:reused], prefix.slots)
    assert torch.equal(kv_of(instances[home], prefix.slots), before), "what others read stays"
    alone, one = run_plan([(tokens, [0])], page, seed)
    expected = kv_of(alone[0], one[0].slot_table.slots([Span(0, tokens)]))
    torch.testing.assert_close(kv_of(instances[home], slots), expected, atol=1e-4, rtol=1e-4)
    assert table.tokens == 0
    for task in tasks:
        task.slot_table.clear()
    for instance in instances:
        held = -(-tokens // page) if instance.number == home else 0
        assert len(instance.allocator.taken) == held, "home keeps the prompt, the others nothing"
    assert prefix.tree.locks == 1, "the lock went with the slots"


@pytest.mark.parametrize("page", [1, 4])
def test_a_table_never_frees_what_is_cached(page: int) -> None:
    allocator = StrictAllocator(64, page)
    table, tree = SlotTable(allocator, page), Tree()
    slots = allocator.alloc(4 * page)
    assert slots is not None
    table.use(CachedPrefix(slots, "node", "lock", tree))
    spans = [Span(2 * page, 6 * page)]
    assert table.needed(spans) == 2 * page
    table.take(spans)
    assert table.tokens == 6 * page
    assert torch.equal(table.slots([Span(0, 4 * page)]), slots)
    assert table.slots_to_store([Span(0, 6 * page)])[: 4 * page].tolist() == [0] * 4 * page
    table.drop([Span(3 * page, 5 * page)])
    assert table.tokens == 5 * page
    assert torch.equal(table.slots([Span(0, 4 * page)]), slots)
    table.give_back()
    assert table.tokens == 4 * page
    assert tree.locks == 1
    table.clear()
    assert tree.locks == 0
    assert table.tokens == 0
    assert allocator.taken == {int(slot) // page for slot in slots}
    table.clear()
    assert tree.locks == 0


# -- in SGLang's own tree -----------------------------------------------------------------


def join(scheduler: Scheduler, joining: Joining, req: Req, prefix: CachedPrefix | None) -> None:
    """A prompt is computed from a prefix on; its first token is 7."""
    first = prefix.tokens if prefix is not None else 0
    own = scheduler.token_to_kv_pool_allocator.alloc(len(req.origin_input_ids) - first)
    assert own is not None
    req.output_ids.append(7)
    parts = [own] if prefix is None else [prefix.slots, own]
    joining.add(req, torch.cat(parts), prefix)


def found(scheduler: Scheduler, req: Req, tokens: list[int]) -> CachedPrefix | None:
    return match_in(scheduler.tree_cache)(req, torch.tensor(tokens, dtype=torch.int64))


@pytest.fixture(params=[None, *CORES])
def core(request: pytest.FixtureRequest) -> str | None:
    """The core of SGLang's unified tree, None for its plain tree."""
    found: str | None = request.param
    return found


def after_one(core: str | None, tokens: list[int], **more: Any) -> tuple[Scheduler, Joining]:
    """A scheduler whose tree has a prompt from a request that has ended."""
    scheduler = Scheduler(core=core)
    joining = Joining(scheduler)
    join(scheduler, joining, request(tokens, limit=1, **more), None)
    joining.admit(ScheduleBatch(reqs=[]))
    assert scheduler.tree_cache.evictable_size() == len(tokens)
    return scheduler, joining


def test_a_match_is_locked_until_it_is_let_go(core: str | None) -> None:
    scheduler, _ = after_one(core, PROMPT)
    prefix = found(scheduler, request([*PROMPT[:30], 9]), PROMPT[:30])
    assert prefix is not None
    assert prefix.tokens == 30
    assert scheduler.tree_cache.protected_size() == 30
    prefix.let_go()
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.tree_cache.evictable_size() == 40


def test_less_is_found_than_was_cached_once(core: str | None) -> None:
    scheduler, _ = after_one(core, PROMPT)
    prefix = found(scheduler, request([*PROMPT[:20], *PROMPT]), [*PROMPT[:20], *PROMPT])
    assert prefix is not None
    assert prefix.tokens == 20
    prefix.let_go()
    assert found(scheduler, request([3, 3, 3]), [3, 3]) is None
    assert scheduler.tree_cache.protected_size() == 0


@pytest.mark.parametrize("more", [{"cache_salt": "a"}, {"extra_key": "a"}])
def test_other_namespaces_are_not_matched(more: dict[str, Any], core: str | None) -> None:
    scheduler, _ = after_one(core, PROMPT, **more)
    assert found(scheduler, request(PROMPT), PROMPT) is None
    prefix = found(scheduler, request(PROMPT, **more), PROMPT)
    assert prefix is not None


def test_a_request_joins_with_its_cached_prefix(core: str | None) -> None:
    scheduler, joining = after_one(core, PROMPT)
    req = request([*PROMPT[:30], *range(60, 80)])
    prefix = found(scheduler, req, PROMPT[:30])
    join(scheduler, joining, req, prefix)
    running = joining.admit(ScheduleBatch(reqs=[]))
    assert running.reqs == [req]
    assert running.seq_lens.tolist() == [50]
    assert req.cached_tokens == 30
    row = scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :50]
    assert prefix is not None
    assert torch.equal(row[:30].to(torch.int64), prefix.slots)
    assert row.unique().numel() == 50
    assert scheduler.tree_cache.protected_size() == 50
    req.to_finish = FINISH_ABORT()
    req.update_finish_state()
    release(req, scheduler.tree_cache)
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.free() == SLOTS
    assert scheduler.tree_cache.evictable_size() == 60


def test_a_prompt_that_another_has_inserted_meanwhile_keeps_one_copy(core: str | None) -> None:
    scheduler, joining = after_one(core, PROMPT)
    prompt = [*PROMPT[:30], *range(60, 80)]
    one, two = request(prompt), request(prompt)
    for req in (one, two):
        join(scheduler, joining, req, found(scheduler, req, PROMPT[:30]))
    running = joining.admit(ScheduleBatch(reqs=[]))
    assert running.reqs == [one, two]
    rows = scheduler.req_to_token_pool.req_to_token
    assert torch.equal(rows[one.kv.req_pool_idx, :50], rows[two.kv.req_pool_idx, :50])
    for req in (one, two):
        req.to_finish = FINISH_ABORT()
        req.update_finish_state()
        release(req, scheduler.tree_cache)
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.free() == SLOTS


def test_who_ends_with_the_first_token_unlocks_it(core: str | None) -> None:
    scheduler, joining = after_one(core, PROMPT)
    req = request([*PROMPT[:30], 9], limit=1)
    join(scheduler, joining, req, found(scheduler, req, PROMPT[:30]))
    assert joining.admit(ScheduleBatch(reqs=[])).reqs == []
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.free() == SLOTS


def test_a_request_that_is_withdrawn_before_its_row_unlocks_it(core: str | None) -> None:
    scheduler, joining = after_one(core, PROMPT)
    req = request([*PROMPT[:30], *range(60, 80)])
    join(scheduler, joining, req, found(scheduler, req, PROMPT[:30]))
    assert joining.withdraw(req)
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.free() == SLOTS
