"""The controller names pages as SGLang's trees do, and its index follows them."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from sglang.srt.disaggregation.kv_events import BlockStored
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.prefixes.namespaces import salt_of
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.engine.cache_events import changes_of, hashing_works
from sglang_cdsp.engine.prefixes import match_in
from sglang_cdsp.testing.kv_events import Subscriber
from tests.controller.prefixes.prompts import request
from tests.engine.prefix_trees import SLOTS, insert, tree_of
from tests.engine.stock_pools import CORES


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("salt", [None, "tenant", salt_of("key", "tenant")])
def test_pages_have_the_names_of_their_events(page: int, salt: str | None, core: str) -> None:
    tree, rng = tree_of(page, core), random.Random(page)
    assert hashing_works(tree)
    first = [rng.randrange(150_000) for _ in range(200)]
    second = [*first[:100], *(rng.randrange(150_000) for _ in range(100))]
    for tokens in (first, second):
        insert(tree, tokens, salt)
    names = {name for event in tree.take_events() for name in getattr(event, "block_hashes", ())}
    assert names == {*PageHashes(first, page, salt), *PageHashes(second, page, salt)}


@pytest.mark.parametrize("core", CORES)
def test_the_index_follows_a_tree_that_stores_and_evicts(core: str) -> None:
    page, rng = 16, random.Random(3)
    tree = tree_of(page, core)
    prefixes = PoolPrefixes([SLOTS], page)
    tree.take_events()
    known: list[list[int]] = [[]]
    for _ in range(60):
        start = rng.choice(known)
        new = [rng.randrange(50) for _ in range(rng.randint(1, 300))]
        tokens = [*start[: rng.randint(0, len(start))], *new]
        salt = rng.choice((None, "a"))
        if tree.token_to_kv_pool_allocator.available_size() < len(tokens) + page:
            tree.evict(EvictParams(num_tokens=len(tokens) + page))
        insert(tree, tokens, salt)
        known.append(tokens)
        prefixes.changed(0, changes_of(tree.take_events()))
        assert sum(prefixes.snapshot()["pages_by_instance"]) * page == tree.evictable_size()
        asked = [*rng.choice(known), 1, 2, 3]
        prefixes.waits(request(asked, cache_salt=salt))
        held = prefixes.held("r")
        req: Any = SimpleNamespace(extra_key=None, cache_salt=salt)
        found = match_in(tree)(req, torch.tensor(asked[:-1]))
        assert (held[0].tokens if held else 0) == (found.tokens if found is not None else 0)
        if found is not None:
            found.let_go()
    tree.reset()
    prefixes.changed(0, changes_of(tree.take_events()))
    assert prefixes.snapshot()["pages_by_instance"] == [0]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("salt", [None, "tenant"])
@pytest.mark.parametrize("extra_key", [None, "key"])
def test_one_caches_merged_events_are_its_own(
    extra_key: str | None, salt: str | None, core: str
) -> None:
    """Beside a stock tree, whose requests keep their extra keys; then all of both is evicted."""
    page, rng = 16, random.Random(5)
    ours, stock = tree_of(page, core), tree_of(page, core)
    prefixes = PoolPrefixes([SLOTS], page, publishes=True)
    first = [rng.randrange(150_000) for _ in range(200)]
    for tokens in (first, [*first[:100], *(rng.randrange(150_000) for _ in range(100))]):
        insert(ours, tokens, salt_of(extra_key, salt))
        insert(stock, tokens, salt, extra_key)
    ours.evict(EvictParams(num_tokens=SLOTS))
    stock.evict(EvictParams(num_tokens=SLOTS))
    prefixes.changed(0, changes_of(ours.take_events(), whole=True))
    merged, expected = Subscriber(), Subscriber()
    events, theirs = prefixes.events(), stock.take_events()
    merged.hear(map(msgspec.to_builtins, events))
    expected.hear(map(msgspec.to_builtins, theirs))
    assert merged.pages == expected.pages == {"GPU": set()}
    assert _stored(events) == _stored(theirs)


def _stored(events: list[Any]) -> list[Any]:
    """What is said of each page that is stored, however many one event has."""
    told = []
    for event in events:
        if isinstance(event, BlockStored):
            parent, width = event.parent_block_hash, event.block_size
            for number, name in enumerate(event.block_hashes):
                tokens = list(event.token_ids[number * width : (number + 1) * width])
                told.append((name, parent, tokens, width, event.medium, event.cache_salt))
                parent = name
    return told
