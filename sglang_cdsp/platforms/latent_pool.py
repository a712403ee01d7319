"""SGLang's pool of latent rows, as SGLang 0.5.21 asks an out-of-tree platform for it."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool


class HostLatentPool(MLATokenToKVPool):
    """SGLang's own pool; out-of-tree ones are told the width of an index that plain models lack."""

    def __init__(self, *args: Any, index_head_dim: int | None = None, **kwargs: Any) -> None:
        """``index_head_dim`` is of models with sparse attention, which have another pool."""
        super().__init__(*args, **kwargs)
