"""Cached prefixes are copied from one instance's tree to another's: KV, slots and locks."""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.engine.cache_events import changes_of
from sglang_cdsp.engine.copying import Copying
from sglang_cdsp.engine.joining import give_row, release
from sglang_cdsp.engine.prefixes import match_in
from sglang_cdsp.parallel.ranks import Ranks
from sglang_cdsp.protocol.messages import (
    CopyEnded,
    CopyEndOrder,
    CopyInOrder,
    CopyOutOrder,
    CopyReady,
    Report,
)
from tests.engine.fake_stock import FakeReporter
from tests.engine.one_thread import LAYERS, Instance, pool_of
from tests.engine.stock_pools import CORES, ROWS, SLOTS, VOCAB, Scheduler, options

assert options, "SGLang's options, as far as they are read here"

PROMPT = list(range(2, 42))
SALT = "a tenant"


class End:
    """One instance as far as copies concern it."""

    def __init__(self, instance: Instance, core: str | None) -> None:
        self.instance = instance
        runner = SimpleNamespace(device="cpu", token_to_kv_pool=instance.pool)
        self.scheduler = cast(Any, Scheduler(core=core))
        self.scheduler.tp_worker = SimpleNamespace(model_runner=runner)
        self.reporter = cast(Any, FakeReporter())
        self.reporter.instance = instance.number
        self.copying = Copying(
            scheduler=self.scheduler,
            reporter=self.reporter,
            coroutines=instance.coroutines,
            hub=instance.hub,
            layers=tuple(range(LAYERS)),
            match=match_in(self.scheduler.tree_cache),
        )

    def turn(self) -> None:
        """One turn of the loop."""
        self.instance.coroutines.turn()
        self.copying.step()

    def caches(self, tokens: list[int], salt: str | None = SALT) -> None:
        """A request has ended here that had these tokens; its KV is drawn."""
        req = request(tokens, salt)
        slots = self.scheduler.token_to_kv_pool_allocator.alloc(len(tokens))
        assert slots is not None
        shape = self.instance.pool.kv.shape[3:]
        self.instance.pool.kv[:, :, slots] = torch.randn(LAYERS, 2, len(tokens), *shape)
        give_row(self.scheduler, req, slots, None)
        req.finished_reason = Mock()
        release(req, self.scheduler.tree_cache)

    def kv(self, tokens: list[int], salt: str | None = SALT) -> torch.Tensor | None:
        """KV of these tokens as far as they are cached, ``[layers, 2, tokens, heads, dim]``."""
        match = match_in(self.scheduler.tree_cache)
        prefix = match(request(tokens, salt), torch.tensor(tokens))
        if prefix is None:
            return None
        prefix.let_go()
        return self.instance.pool.kv[:, :, prefix.slots].clone()

    def said(self, kind: type[Report]) -> dict[str, Any]:
        return next(fields for told, fields in reversed(self.reporter.said) if told is kind)

    def kinds(self) -> list[type[Report]]:
        return [kind for kind, _ in self.reporter.said]

    def is_clean(self) -> bool:
        """Whether no slot is held by anybody but the tree, and nothing there is locked."""
        tree = self.scheduler.tree_cache
        rows = self.scheduler.req_to_token_pool.available_size()
        return (
            not self.copying
            and self.scheduler.free() == SLOTS
            and tree.protected_size() == 0
            and rows == ROWS
        )


def request(tokens: list[int], salt: str | None) -> Req:
    params = SamplingParams(max_new_tokens=1)
    params.normalize(None)
    req = Req("r", None, array("q", tokens), params, cache_salt=salt, vocab_size=VOCAB)
    req.time_stats = Mock()
    return req


def two_ends(core: str | None, seed: int = 1) -> tuple[End, End]:
    source, target, *_ = (End(instance, core) for instance in pool_of(1, seed))
    return source, target


def said(tokens: list[int]) -> dict[str, Any]:
    """What both orders say of a copy."""
    return {"tokens": array("I", tokens).tobytes(), "salt": SALT, "lane": 1, "serial": 7}


def order_in(tokens: list[int]) -> CopyInOrder:
    return CopyInOrder(seq=-1, source=0, **said(tokens))


def order_out(tokens: list[int], first: int) -> CopyOutOrder:
    return CopyOutOrder(seq=-1, target=1, first=first, **said(tokens))


def until_ended(*ends: End, seed: int = 0) -> None:
    draw = random.Random(seed)
    for _ in range(2000):
        if all(CopyEnded in end.kinds() for end in ends):
            return
        draw.choice(ends).turn()
    raise AssertionError("the copy does not end")


def copy(source: End, target: End, tokens: list[int], seed: int = 0) -> None:
    target.copying.on_copy_in(order_in(tokens))
    held = target.said(CopyReady)["held"]
    source.copying.on_copy_out(order_out(tokens, held))
    until_ended(source, target, seed=seed)


@pytest.fixture(params=[None, *CORES])
def core(request: pytest.FixtureRequest) -> str | None:
    """The core of SGLang's unified tree, None for its plain tree."""
    found: str | None = request.param
    return found


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cached=st.integers(1, 40),
    asked=st.integers(1, 40),
    there=st.integers(0, 40),
    core=st.sampled_from([None, *CORES]),
    seed=st.integers(0, 99),
)
def test_what_the_target_lacks_travels_and_is_cached(
    cached: int, asked: int, there: int, core: str | None, seed: int
) -> None:
    asked = min(asked, cached)
    source, target = two_ends(core, seed)
    source.caches(PROMPT[:cached])
    if there:
        target.caches(PROMPT[:there])
    before = target.kv(PROMPT[:there]) if there else None
    expected = source.kv(PROMPT[:asked])
    assert expected is not None
    if there >= asked:
        target.copying.on_copy_in(order_in(PROMPT[:asked]))
        until_ended(target)
        assert target.kinds() == [CopyEnded]
    else:
        copy(source, target, PROMPT[:asked], seed)
        got = target.kv(PROMPT[:asked])
        assert got is not None
        assert torch.equal(got[:, :, there:], expected[:, :, there:])
        assert source.said(CopyEnded) == {"seq": -1, "error": "", "found": asked}
        pool = source.instance.pool
        row = pool.kv[0, 0, 0].nbytes
        sent = source.instance.hub.traffic.sent_bytes
        assert sent == (asked - there) * row * 2 * LAYERS, "what is there already does not travel"
    if before is not None:
        kept = target.kv(PROMPT[:there])
        assert kept is not None
        assert torch.equal(kept, before), "what others read stays"
    assert target.said(CopyEnded) == {"seq": -1, "error": "", "found": None}
    assert source.is_clean()
    assert target.is_clean()
    assert target.scheduler.tree_cache.evictable_size() == max(asked, there)


def test_other_namespaces_do_not_get_it(core: str | None) -> None:
    source, target = two_ends(core)
    source.caches(PROMPT)
    copy(source, target, PROMPT)
    assert target.kv(PROMPT, None) is None
    assert target.kv(PROMPT, "another") is None
    assert target.kv(PROMPT) is not None


def test_a_prefix_that_was_evicted_meanwhile_is_not_sent(core: str | None) -> None:
    source, target = two_ends(core)
    source.caches(PROMPT[:25])
    target.copying.on_copy_in(order_in(PROMPT))
    source.copying.on_copy_out(order_out(PROMPT, 0))
    assert source.said(CopyEnded)["found"] == 25
    assert "25 of 40" in source.said(CopyEnded)["error"]
    target.turn()
    target.copying.on_copy_end(CopyEndOrder(seq=-1))
    until_ended(target)
    assert target.said(CopyEnded)["error"]
    assert target.kv(PROMPT) is None
    assert source.is_clean()
    assert target.is_clean()


def test_a_target_without_room_says_so_and_keeps_nothing(core: str | None) -> None:
    source, target = two_ends(core)
    source.caches(PROMPT)
    target.caches(PROMPT[:10])
    held = target.scheduler.token_to_kv_pool_allocator.alloc(SLOTS - 10 - 5)
    target.copying.on_copy_in(order_in(PROMPT))
    assert target.kinds() == [CopyEnded]
    assert "not free" in target.said(CopyEnded)["error"]
    target.scheduler.token_to_kv_pool_allocator.free(held)
    assert target.is_clean()
    assert target.kv(PROMPT[:10]) is not None, "what it has of the prefix is not evicted for it"


def test_what_nobody_uses_is_evicted_for_it(core: str | None) -> None:
    source, target = two_ends(core)
    source.caches(PROMPT)
    for first in range(5):
        target.caches([first + 100, *PROMPT[1:]])
    copy(source, target, PROMPT)
    assert target.kv(PROMPT) is not None
    assert target.is_clean()


@pytest.mark.parametrize("turns", range(0, 12, 2))
@pytest.mark.parametrize("who", ["source", "target"])
def test_an_end_that_is_lost_leaves_no_lock_and_no_slot_at_the_other(who: str, turns: int) -> None:
    source, target = two_ends("rust")
    source.caches(PROMPT)
    target.copying.on_copy_in(order_in(PROMPT))
    source.copying.on_copy_out(order_out(PROMPT, 0))
    ends = {"source": source, "target": target}
    for _ in range(turns):
        source.turn()
        target.turn()
    lost = ends.pop(who)
    (left,) = ends.values()
    left.instance.hub.drop(lost.instance.number)
    left.copying.on_copy_end(CopyEndOrder(seq=-1))
    until_ended(left)
    assert left.is_clean()


def test_what_another_has_brought_there_meanwhile_stays_one_copy(core: str | None) -> None:
    source, target = two_ends(core)
    source.caches(PROMPT)
    target.copying.on_copy_in(order_in(PROMPT))
    target.caches(PROMPT[:30])
    target.caches([*PROMPT, 9])
    source.copying.on_copy_out(order_out(PROMPT, 0))
    until_ended(source, target)
    assert target.said(CopyEnded)["error"] == ""
    assert target.is_clean()
    assert target.scheduler.tree_cache.evictable_size() == len(PROMPT) + 1


def test_a_target_without_a_row_says_so(core: str | None) -> None:
    _, target = two_ends(core)
    target.caches(PROMPT[:10])
    rows = target.scheduler.req_to_token_pool.alloc_rows(ROWS)
    target.copying.on_copy_in(order_in(PROMPT))
    assert "places for requests" in target.said(CopyEnded)["error"]
    target.scheduler.req_to_token_pool.free_rows(rows)
    assert target.is_clean()


@pytest.mark.parametrize("core", CORES)
def test_the_tree_tells_of_it_before_the_copy_has_ended(core: str) -> None:
    source, target = two_ends(core)
    source.caches(PROMPT)
    target.copying.on_copy_in(order_in(PROMPT))
    source.copying.on_copy_out(order_out(PROMPT, 0))
    target.scheduler.tree_cache.take_events()  # it begins empty, and tells so
    told: list[Any] = []
    for _ in range(300):
        source.turn()
        target.turn()
        if CopyEnded in target.kinds():
            break
        told += changes_of(target.scheduler.tree_cache.take_events())
    assert {change.kind for change in told} == {"stored"}
    assert sum(len(change.pages) // 8 for change in told) == len(PROMPT)


@pytest.mark.parametrize(
    ("latent", "carried"), [(False, 2 * 3 * 8 * 4 * 2), (True, 3 * 8 * 4 // 2)]
)
def test_ranks_carry_rows_that_all_of_them_hold_once(latent: bool, carried: int) -> None:
    """What is reckoned of copies is what travels: K and V of a rank's heads, or half of a row."""
    rows = torch.zeros(9, 2, 8)[:, :1] if latent else torch.zeros(9, 2, 8)
    pool = SimpleNamespace(
        get_key_buffer=lambda layer: rows,
        get_value_buffer=lambda layer: rows[..., :6] if latent else rows.clone(),
    )
    runner = SimpleNamespace(device="cpu", token_to_kv_pool=pool)
    copying = Copying(
        scheduler=cast(Any, SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner))),
        reporter=Mock(),
        coroutines=Mock(),
        hub=Mock(),
        layers=(0, 1, 2),
        match=Mock(),
        ranks=Ranks(0, 2, lambda part: part),
    )
    assert copying.token_bytes == carried
