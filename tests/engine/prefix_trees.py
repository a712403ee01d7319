"""SGLang's prefix trees as servers have them, with their events, and prompts that they take in."""

from __future__ import annotations

from array import array
from typing import Any
from unittest.mock import Mock

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

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


def insert(
    tree: UnifiedRadixCache, tokens: list[int], salt: str | None, extra_key: str | None = None
) -> None:
    """As a request that ends leaves its tokens, in whole pages."""
    key = RadixKey(array("q", tokens), extra_key=extra_key, cache_salt=salt).page_aligned(
        tree.page_size
    )
    slots = tree.token_to_kv_pool_allocator.alloc(len(key))
    assert slots is not None
    tree.insert(InsertParams(key=key, value=slots.to(torch.int64)))
