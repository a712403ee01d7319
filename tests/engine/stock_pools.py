"""SGLang's scheduler with its own rows, prefix tree and allocator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from sglang.srt.managers import schedule_batch
from sglang.srt.mem_cache import common
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.sampling import sampling_batch_info
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from tests.engine.fake_stock import FakeScheduler

VOCAB, SLOTS, ROWS = 32, 200, 4
CORES = ("rust", "python")
"""Of SGLang's unified tree, which servers have."""


@pytest.fixture(autouse=True)
def options(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's options, as far as they are read here."""
    exec_options = SimpleNamespace(
        deterministic=SimpleNamespace(enable_deterministic_inference=False),
        features=SimpleNamespace(enable_custom_logit_processor=False, enable_watermark=False),
    )
    spec = SimpleNamespace(speculative_algorithm=None)
    serving = SimpleNamespace(strip_thinking_cache=False)
    monkeypatch.setattr(sampling_batch_info, "get_exec", lambda: exec_options)
    for module in (schedule_batch, common):
        monkeypatch.setattr(module, "get_spec", lambda: spec)
        monkeypatch.setattr(module, "get_serving", lambda: serving)


class Scheduler(FakeScheduler):
    """SGLang's scheduler with its own pools and tree."""

    def __init__(self, *, max_running: int = ROWS, core: str | None = None) -> None:
        """``core``: of its unified tree, which keeps its events; None for the plain tree."""
        pool: Any = Mock()
        allocator = TokenToKVPoolAllocator(SLOTS, torch.float32, "cpu", pool, False)
        rows = ReqToTokenPool(ROWS, 128, "cpu", enable_memory_saver=False)
        params = CacheInitParams(False, rows, allocator, 1)
        if core is not None:
            params.enable_kv_cache_events = True
            params.tree_components = (ComponentType.FULL,)
            params.tree_core_backend = core
        tree: Any = RadixCache(params) if core is None else UnifiedRadixCache(params)
        super().__init__(
            token_to_kv_pool_allocator=allocator,
            req_to_token_pool=rows,
            tree_cache=tree,
            model_config=SimpleNamespace(vocab_size=VOCAB, is_encoder_decoder=False),
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )
        self.max_running_requests = max_running
        self.future_map = Mock()
        self.streamed: list[list[Any]] = []
        self.output_streamer.stream_output = lambda reqs, *more: self.streamed.append(list(reqs))

    def free(self) -> int:
        """Slots that are free or cached for nobody."""
        return int(
            self.token_to_kv_pool_allocator.available_size() + self.tree_cache.evictable_size()
        )
