"""What the target of a move has cached of a request is locked there, and does not travel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req

from sglang_cdsp.engine import joining
from sglang_cdsp.engine.joining import release
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import (
    MovedIn,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveReady,
)
from tests.engine.move_ends import (
    PROMPT,
    ROW,
    SERIAL,
    End,
    ask,
    ends_meet,
    pass_on,
    request,
    sent,
    two_ends,
    until,
)
from tests.engine.moving_prompts import PLANS, Prefill
from tests.engine.plans import Chunks
from tests.engine.stock_pools import CORES, ROWS, SLOTS, VOCAB, options
from tests.engine.wire import counted

assert options, "SGLang's options, as far as they are read here"

FUNCTION_SCOPED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=[None, *CORES])
def core(request: pytest.FixtureRequest) -> str | None:
    """The core of SGLang's unified tree, None for its plain tree."""
    found: str | None = request.param
    return found


def named(salt: str | None = None, key: str | None = None) -> Req:
    """A request of a namespace."""
    req = request()
    req.cache_salt, req.extra_key = salt, key
    return req


def locked(end: End) -> int:
    """Tokens of an instance's tree that somebody uses."""
    return int(end.scheduler.tree_cache.protected_size())


def is_clean(end: End) -> bool:
    """Whether no slot is held by anybody but the tree, and nothing there is locked."""
    rows = end.scheduler.req_to_token_pool.available_size()
    return end.scheduler.free() == SLOTS and locked(end) == 0 and rows == ROWS and not end.moving


def finish(end: End, req: Req) -> None:
    """SGLang ends a request that runs."""
    req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))
    release(req, end.scheduler.tree_cache)


def moved(source: End, target: End, after: Req, ahead: int, held: int) -> None:
    """A request goes from one to the other."""
    ask(source, target, after, ahead, held)
    until(MovedOut, source, target)
    pass_on(source, target)
    until(MovedIn, target, source)
    ends_meet(source, target, moved=True)
    target.turn()


@settings(max_examples=30, deadline=None, suppress_health_check=FUNCTION_SCOPED)
@given(
    cached=st.integers(0, len(PROMPT)),
    ahead=st.integers(0, len(PROMPT)),
    output=st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6),
    core=st.sampled_from([None, *CORES]),
    seed=st.integers(0, 99),
)
def test_only_what_the_target_lacks_travels(
    cached: int, ahead: int, output: list[int], core: str | None, seed: int
) -> None:
    source, target = two_ends(seed, core)
    before, after = named("a tenant"), named("a tenant")
    source.decodes(5, before, output)
    if cached:
        target.caches(before, cached)
    held = min(cached, ahead)
    theirs = target.instance.pool.kv.clone()
    kv, rows = source.kv(before), source.rows(before).numel()
    with counted() as wire:
        moved(source, target, after, ahead, held)
    assert sent(wire) == ROW * (rows - held)
    assert source.said(MovedOut)["ahead"] == ahead
    # Of what came though it was cached, the tree keeps its own copy.
    assert torch.equal(target.kv(after)[:, :, cached:], kv[:, :, cached:])
    there = target.rows(after)[:held]
    assert torch.equal(target.instance.pool.kv[:, :, there], theirs[:, :, there]), "as it was"
    assert locked(target) >= held
    finish(target, after)
    assert is_clean(target)
    assert is_clean(source)
    assert target.scheduler.tree_cache.evictable_size() == rows, "one copy of each row"


@pytest.mark.parametrize(
    "theirs", [("another", None), (None, "a key"), (None, None)], ids=["salt", "key", "common"]
)
def test_other_namespaces_have_nothing_of_it(core: str | None, theirs: tuple[Any, Any]) -> None:
    source, target = two_ends(core=core)
    before, after = named("a tenant"), named("a tenant")
    source.decodes(5, before, [7, 8])
    target.caches(named(*theirs), len(PROMPT))
    with counted() as wire:
        moved(source, target, after, len(PROMPT), 0)
    assert sent(wire) == ROW * (len(PROMPT) + 1)
    finish(target, after)
    assert is_clean(target)


def test_a_key_of_its_own_finds_its_own(core: str | None) -> None:
    source, target = two_ends(core=core)
    before, after = named("a tenant", "a key"), named("a tenant", "a key")
    source.decodes(5, before, [7, 8])
    target.caches(before, 20)
    moved(source, target, after, len(PROMPT), 20)
    finish(target, after)
    assert is_clean(target)


def test_what_sglang_is_to_keep_nothing_of_leaves_the_cached_part(core: str | None) -> None:
    source, target = two_ends(core=core)
    before, after = request(), request()
    after.skip_radix_cache_insert = FAKE_BOOTSTRAP_HOST
    source.decodes(5, before, [7, 8])
    target.caches(before, 20)
    moved(source, target, after, len(PROMPT), 20)
    assert locked(target) == 20
    finish(target, after)
    assert is_clean(target)
    assert target.scheduler.tree_cache.evictable_size() == 20


def test_what_was_sent_in_vain_comes_anew_without_what_is_cached(core: str | None) -> None:
    source, target = two_ends(core=core)
    before, after = request(), request()
    source.decodes(5, before, [7, 8, 9])
    target.caches(before, 12)
    with counted() as wire:
        ask(source, target, after, len(PROMPT), 12)
        before.retraction_count += 1
        kv = source.kv(before)
        kv += 1.0
        source.instance.pool.kv[:, :, source.rows(before)] = kv
        until(MovedOut, source, target)
        assert source.said(MovedOut)["ahead"] == 12
        pass_on(source, target)
        until(MovedIn, target, source)
    assert sent(wire) == ROW * (2 * (len(PROMPT) - 12) + 2)
    target.turn()
    assert torch.equal(target.kv(after)[:, :, 12:], kv[:, :, 12:])


@pytest.mark.parametrize("turns", range(0, 20, 2))
def test_what_is_called_off_unlocks_it(core: str | None, turns: int) -> None:
    source, target = two_ends(core=core)
    before = request()
    source.decodes(5, before, [7, 8])
    target.caches(before, 12)
    ask(source, target, request(), len(PROMPT), 12)
    assert locked(target) == 12
    for _ in range(turns):
        source.turn()
        target.turn()
    ends_meet(source, target, moved=False)
    assert source.running.reqs == [before]
    assert is_clean(target)


@pytest.mark.parametrize("turns", range(0, 12, 2))
def test_a_source_that_is_lost_leaves_no_lock(core: str | None, turns: int) -> None:
    source, target = two_ends(core=core)
    before = request()
    source.decodes(5, before, [7, 8])
    target.caches(before, 12)
    ask(source, target, request(), len(PROMPT), 12)
    for _ in range(turns):
        source.turn()
        target.turn()
    target.instance.hub.drop(source.instance.number)
    target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    for _ in range(50):
        target.turn()
    assert MoveEnded in target.kinds() or MoveFailed in target.kinds()
    assert is_clean(target)


def test_a_target_without_room_for_the_rest_unlocks_it(core: str | None) -> None:
    source, target = two_ends(core=core)
    before = request()
    source.decodes(5, before, [7])
    target.caches(before, 12)
    held = target.scheduler.token_to_kv_pool_allocator.alloc(SLOTS - 12 - 5)
    order = MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=SERIAL, ahead=len(PROMPT))
    target.moving.on_move_in(order)
    assert target.moving.adopt(request())
    until(MoveFailed, target)
    assert MoveReady not in target.kinds()
    target.scheduler.token_to_kv_pool_allocator.free(held)
    assert is_clean(target)
    assert target.scheduler.tree_cache.evictable_size() == 12, "it is not evicted for the rest"


@pytest.mark.parametrize("runs", [False, True], ids=["waits for a row", "runs"])
def test_it_is_unlocked_when_the_request_is_taken_back(core: str | None, runs: bool) -> None:
    """As SGLang retracts it, or as it is taken back before it has a row."""
    source, target = two_ends(core=core)
    before, after = request(), request()
    source.decodes(5, before, [7, 8])
    target.caches(before, 12)
    if not runs:
        target.joining.admit = lambda running: running  # type: ignore[method-assign]
    moved(source, target, after, len(PROMPT), 12)
    if runs:
        target.scheduler.running_batch = target.running
        assert joining.withdraw(target.scheduler, after)
    else:
        assert target.joining.withdraw(after)
    assert is_clean(target)


def test_a_server_without_a_prefix_cache_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tree may not even answer."""
    source, target = two_ends()
    before, after = request(), request()
    source.decodes(5, before, [7, 8])
    target.caches(before, 12)
    monkeypatch.setattr("sglang_cdsp.engine.moving_in.shares_prefixes", lambda tree: False)
    moved(source, target, after, len(PROMPT), 0)
    finish(target, after)
    assert is_clean(target)


@pytest.mark.parametrize("cached", [1, 12, len(PROMPT)])
@pytest.mark.parametrize("chunks", PLANS, ids=str)
def test_nor_does_it_while_the_last_chunk_runs(chunks: Chunks, cached: int) -> None:
    for seed in range(4):
        with counted() as wire:
            prompt = Prefill(chunks, seed)
            prompt.target.caches(prompt.after, cached)
            prompt.before_last()
            ask(prompt.home, prompt.target, prompt.after, len(PROMPT), cached)
            prompt.last()
            whole = prompt.task.slot_table.slots([Span(0, len(PROMPT))])
            kv = prompt.home.instance.pool.kv[:, :, whole].clone()
            prompt.joins()
            prompt.home.tasks.clear()
            until(MovedOut, prompt.home, prompt.target)
            assert prompt.home.said(MovedOut)["ahead"] == len(PROMPT)
            pass_on(prompt.home, prompt.target)
            until(MovedIn, prompt.target, prompt.home)
        assert sent(wire) == ROW * (len(PROMPT) - cached)
        ends_meet(prompt.home, prompt.target, moved=True)
        prompt.target.turn()
        there = prompt.target.kv(prompt.after)
        assert torch.equal(there[:, :, cached:], kv[:, :, cached:]), seed
        finish(prompt.target, prompt.after)
        assert is_clean(prompt.target)
