"""Prompts that decode has stay in home's prefix cache, and later ones start from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST

from sglang_cdsp.engine.kept import keep_in
from sglang_cdsp.engine.prefixes import match_in
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import Ready, Released, ReleaseOrder, RestOrder
from tests.engine.fake_rank import CHUNKS, PAGES, FakeCache, Rank
from tests.engine.stock_pools import CORES, ROWS, SLOTS, Scheduler, options
from tests.engine.stock_prompts import PROMPT, request

assert options, "SGLang's options, as far as they are read here"

TOKENS = sum(tokens for tokens, _ in CHUNKS)


# -- one rank -----------------------------------------------------------------------------


def home(cache: FakeCache, *, gathers: bool = True) -> Rank:
    """The home of a prompt whose chunks have run, and whose writes fly."""
    rank = Rank(cache=cache)
    rank.plan(gathers=gathers)
    rank.request()
    run(rank, range(len(CHUNKS)))
    return rank


def run(rank: Rank, chunks: Iterable[int]) -> None:
    """Chunks run; of their writes the last one flies."""
    for chunk in chunks:
        rank.written.update(dict.fromkeys(rank.written, "landed"))
        rank.engine.step()
        rank.go(chunk)
    rank.engine.step()


def lands(rank: Rank) -> None:
    """All writes end well, and the rank says so."""
    rank.written.update(dict.fromkeys(rank.written, "landed"))
    rank.engine.step()


def test_home_keeps_the_whole_prompt_once_decode_has_it() -> None:
    cache = FakeCache()
    rank = home(cache)
    assert cache.kept == [], "writes read its slots still"
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0))
    (kept,) = cache.kept
    assert kept.numel() == TOKENS == kept.unique().numel()
    assert rank.allocator.available_size() == PAGES - TOKENS
    assert rank.last(Released) == {"seq": 0, "joined": False}
    rank.scheduler.output_streamer.stream_output.assert_called_once()
    assert rank.engine.idle


def test_without_room_for_all_home_keeps_what_it_has_from_the_first_token_on() -> None:
    cache = FakeCache()
    rank = home(cache, gathers=False)
    front = rank.engine._tasks[0].slot_table.front
    assert 0 < front < TOKENS
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert [kept.numel() for kept in cache.kept] == [front]
    assert rank.allocator.available_size() == PAGES - front, "the rest is free"


@pytest.mark.parametrize("order", [{"error": "a write failed"}, {"silent": True}])
def test_what_decode_does_not_have_is_not_kept(order: dict[str, Any]) -> None:
    cache = FakeCache()
    rank = home(cache)
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0, **order))
    assert cache.kept == []
    assert rank.allocator.available_size() == PAGES


def test_what_was_not_computed_to_its_end_is_not_kept() -> None:
    cache = FakeCache()
    rank = Rank(cache=cache)
    rank.plan(gathers=True)
    rank.request()
    rank.engine.step()
    rank.go(0)
    rank.stop()
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert cache.kept == []
    assert rank.allocator.available_size() == PAGES


def test_another_member_keeps_nothing() -> None:
    cache = FakeCache()
    rank = Rank(1, cache=cache)
    rank.plan(gathers=True)
    run(rank, (1, 2))
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0))
    assert cache.kept == []
    assert rank.allocator.available_size() == PAGES


def test_a_rest_says_anew_whether_home_gathers() -> None:
    cache = FakeCache()
    rank = Rank(cache=cache)
    rank.plan(gathers=True)
    rank.request()
    run(rank, (0, 1))
    assert rank.allocator.available_size() == PAGES - TOKENS
    rest = [*CHUNKS[:2], (64, [0, 1])]
    rank.engine.on_rest(RestOrder(seq=0, revision=1, chunk=2, chunks=rest))
    rank.engine.step()
    assert rank.allocator.available_size() > PAGES - TOKENS


def test_the_next_turn_starts_from_it_and_keeps_its_own() -> None:
    cache = FakeCache()
    rank = home(cache)
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0))
    (kept,) = cache.kept
    rank.plan([(64, [0, 1])], rid="s", seq=1, reused=TOKENS, gathers=True)
    req = rank.request("s")
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 1, "chunk": 0, "revision": 0, "found": TOKENS}
    assert cache.locks == 1
    assert rank.allocator.available_size() == PAGES - TOKENS - 64
    rank.go(0, seq=1)
    assert req.cached_tokens == req.cached_tokens_device == TOKENS
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=1))
    assert cache.locks == 0
    again = cache.kept[1]
    assert torch.equal(again[:TOKENS], kept)
    assert again.numel() == TOKENS + 64


def test_a_follower_waits_until_decode_has_what_it_starts_from() -> None:
    """It is no miss: the prompt is computed, and will be cached when its writes have ended."""
    cache = FakeCache()
    rank = home(cache)
    rank.plan([(64, [0])], rid="s", seq=1, reused=TOKENS, gathers=True)
    rank.request("s")
    for _ in range(3):
        rank.engine.step()
    assert all(said.get("seq") != 1 for kind, said in rank.said if kind is Ready)
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0))
    rank.engine.step()
    assert rank.last(Ready)["found"] == TOKENS


def test_a_follower_of_a_prompt_that_fails_misses() -> None:
    cache = FakeCache()
    rank = home(cache)
    rank.plan([(64, [0])], rid="s", seq=1, reused=TOKENS, gathers=True)
    rank.request("s")
    rank.engine.step()
    lands(rank)
    rank.engine.on_release(ReleaseOrder(seq=0, error="decode is gone"))
    rank.engine.step()
    assert rank.last(Ready) == {"seq": 1, "chunk": 0, "revision": 0, "found": 0}
    assert rank.allocator.available_size() == PAGES


def test_ranks_touch_the_cache_in_the_same_turn_whenever_they_hear_of_decodes_pages() -> None:
    leader, other = (Rank(tp_rank=tp_rank, cache=FakeCache()) for tp_rank in (0, 1))
    leader.known = False
    free = []
    for rank in (leader, other):
        rank.plan(gathers=True)
        rank.request()
        rank.engine.step()
        free.append(rank.allocator.available_size())
    assert free == [PAGES - CHUNKS[0][0]] * 2
    assert Ready not in leader.kinds()
    leader.known = True
    leader.engine.step()
    assert leader.last(Ready)["chunk"] == 0


# -- in SGLang's own tree -----------------------------------------------------------------


@pytest.fixture(params=[None, *CORES])
def scheduler(request: pytest.FixtureRequest) -> Scheduler:
    """With a plain tree, or a unified one by its core."""
    return Scheduler(core=request.param)


def computed(scheduler: Scheduler, tokens: list[int], *spans: Span) -> tuple[Any, SlotTable]:
    """A prompt of which decode has all, and what home holds of it."""
    req = request(tokens)
    req.output_ids.append(7)
    table = SlotTable(scheduler.token_to_kv_pool_allocator, 1)
    prefix = match_in(scheduler.tree_cache)(req, torch.tensor(tokens[:-1], dtype=torch.int64))
    if prefix is not None:
        table.use(prefix)
    table.take(spans or [Span(0, len(tokens))])
    return req, table


def keep(scheduler: Scheduler, req: Any, table: SlotTable) -> None:
    keep_in(scheduler.req_to_token_pool, scheduler.tree_cache)(req, table)
    table.clear()


def test_a_kept_prompt_is_found(scheduler: Scheduler) -> None:
    req, table = computed(scheduler, PROMPT)
    slots = table.slots([Span(0, len(PROMPT))])
    keep(scheduler, req, table)
    assert scheduler.tree_cache.evictable_size() == len(PROMPT)
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.free() == SLOTS
    assert scheduler.req_to_token_pool.available_size() == ROWS
    found = match_in(scheduler.tree_cache)(request([*PROMPT, 9]), torch.tensor(PROMPT))
    assert found is not None
    assert torch.equal(found.slots, slots)


def test_only_the_front_of_a_spread_prompt_is_kept(scheduler: Scheduler) -> None:
    keep(scheduler, *computed(scheduler, PROMPT, Span(0, 10), Span(10, 15), Span(30, 40)))
    assert scheduler.tree_cache.evictable_size() == 15
    assert scheduler.free() == SLOTS
    keep(scheduler, *computed(scheduler, [3, 3, 3, 3], Span(2, 4)))
    assert scheduler.tree_cache.evictable_size() == 15
    assert scheduler.free() == SLOTS


def test_a_prompt_that_started_from_another_is_kept_once(scheduler: Scheduler) -> None:
    keep(scheduler, *computed(scheduler, PROMPT[:30]))
    req, table = computed(scheduler, PROMPT)
    assert table.prefix is not None
    assert scheduler.tree_cache.protected_size() == 30
    keep(scheduler, req, table)
    assert scheduler.tree_cache.protected_size() == 0
    assert scheduler.tree_cache.evictable_size() == len(PROMPT)
    assert scheduler.free() == SLOTS


def test_of_two_that_were_computed_at_once_one_copy_stays(scheduler: Scheduler) -> None:
    both = [computed(scheduler, PROMPT) for _ in range(2)]
    for req, table in both:
        keep(scheduler, req, table)
    assert scheduler.tree_cache.evictable_size() == len(PROMPT)
    assert scheduler.free() == SLOTS


def test_nothing_is_kept_without_a_row_or_for_sglangs_stand_in(scheduler: Scheduler) -> None:
    others = [request([5]) for _ in range(ROWS)]
    assert scheduler.req_to_token_pool.alloc(others) is not None
    keep(scheduler, *computed(scheduler, PROMPT))
    assert scheduler.tree_cache.evictable_size() == 0
    scheduler.req_to_token_pool.free(others[0])
    req, table = computed(scheduler, PROMPT)
    req.skip_radix_cache_insert = FAKE_BOOTSTRAP_HOST
    keep(scheduler, req, table)
    assert scheduler.tree_cache.evictable_size() == 0
    assert scheduler.token_to_kv_pool_allocator.available_size() == SLOTS
