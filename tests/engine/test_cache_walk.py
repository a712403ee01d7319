"""A tree that is read node by node says what its events have said, and whose slots are whose."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.engine.cache_events import changes_of
from sglang_cdsp.engine.cache_walk import walked
from sglang_cdsp.protocol.cache_digest import CACHES_VAR, digest
from tests.engine.prefix_trees import SLOTS, insert, tree_of
from tests.engine.stock_pools import CORES


def walk(tree: Any) -> dict[str, Any]:
    return walked(tree, tree.token_to_kv_pool_allocator)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("page", [1, 16])
def test_a_walk_finds_what_the_index_knows(
    page: int, core: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHES_VAR, "1")
    tree, rng = tree_of(page, core), random.Random(page)
    prefixes = PoolPrefixes([SLOTS], page)
    known: list[list[int]] = [[]]
    for turn in range(20):
        start = rng.choice(known)
        tokens = [*start[: rng.randint(0, len(start))], *(rng.randrange(9) for _ in range(200))]
        if tree.token_to_kv_pool_allocator.available_size() < len(tokens) + page:
            tree.evict(EvictParams(num_tokens=SLOTS // 4))
        insert(tree, tokens, rng.choice((None, "a")))
        known.append(tokens)
        if turn % 5 == 4:
            tree.evict(EvictParams(num_tokens=150))
        prefixes.changed(0, changes_of(tree.take_events()))
        found, index = walk(tree), prefixes.snapshot()
        assert (found["twice"], found["free"]) == (0, 0)
        assert found["slots"] == index["pages_by_instance"][0] * page
        assert found["pages"] == (index["digests"][0] if core == "python" else None)


@pytest.mark.parametrize("core", CORES)
def test_slots_that_are_free_at_the_same_time_are_found(core: str) -> None:
    tree = tree_of(16, core)
    insert(tree, list(range(64)), None)
    tree.token_to_kv_pool_allocator.free(tree.all_values_flatten()[16:32])
    assert walk(tree)["free"] == 16


def test_nothing_is_cached_where_there_is_no_tree() -> None:
    allocator = tree_of(1, "rust").token_to_kv_pool_allocator
    assert walked(object(), allocator) == {"slots": 0, "twice": 0, "free": 0, "pages": None}


def test_a_digest_tells_pages_and_how_many() -> None:
    assert digest([3, -1]) == digest(iter([-1, 3]))
    assert digest([3, -1]) != digest([3, 1])
    assert digest([3, 3]) != digest([3])
    assert digest([]).startswith("0:")
    assert digest(torch.arange(5).tolist()).startswith("5:")
