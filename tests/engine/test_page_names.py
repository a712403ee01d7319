"""The controller names pages as SGLang's trees do, and its index follows them."""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.prefixes.namespaces import salt_of
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.engine.cache_events import changes_of, hashing_works
from sglang_cdsp.engine.prefixes import match_in
from tests.controller.prefixes.prompts import request
from tests.engine.stock_pools import CORES

SLOTS = 4096


def tree_of(page: int, core: str) -> UnifiedRadixCache:
    """SGLang's tree of a server, which tells its events."""
    kinds: dict[bool, Any] = {True: TokenToKVPoolAllocator, False: PagedTokenToKVPoolAllocator}
    pool: Any = Mock()
    arguments: list[Any] = [SLOTS, torch.float32, "cpu", pool, False]
    if page > 1:
        arguments.insert(1, page)
    rows = ReqToTokenPool(4, 128, "cpu", enable_memory_saver=False)
    return UnifiedRadixCache(
        CacheInitParams(
            False,
            rows,
            kinds[page == 1](*arguments),
            page,
            enable_kv_cache_events=True,
            tree_components=(ComponentType.FULL,),
            tree_core_backend=core,
        )
    )


def insert(tree: UnifiedRadixCache, tokens: list[int], salt: str | None) -> None:
    """As a request that ends leaves its tokens, in whole pages."""
    key = RadixKey(array("q", tokens), cache_salt=salt).page_aligned(tree.page_size)
    slots = tree.token_to_kv_pool_allocator.alloc(len(key))
    assert slots is not None
    tree.insert(InsertParams(key=key, value=slots.to(torch.int64)))


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
