"""What models with latent attention need of SGLang on the CPU: their pool, and one form."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool


class HostLatentPool(MLATokenToKVPool):
    """SGLang's own pool; out-of-tree ones are told the width of an index that plain models lack."""

    def __init__(self, *args: Any, index_head_dim: int | None = None, **kwargs: Any) -> None:
        """``index_head_dim`` is of models with sparse attention, which have another pool."""
        super().__init__(*args, **kwargs)


def absorb_latents(backend: Any, model_runner: Any) -> None:
    """BEFORE hook on ``TorchNativeAttnBackend.__init__``: latent layers compute the absorbed form.

    That backend attends to what the pool holds, which are latent rows. SGLang answers for a
    backend that it does not know as for Triton, and then the first prefill has expanded queries.

    Args:
        backend: the backend that is made.
        model_runner: SGLang's, which makes it.
    """
    if not model_runner.use_mla_backend:
        return
    # Imported here: models without latent attention need none of it.
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
    )
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    AttentionBackendRegistry.register(
        "torch_native", lambda attention, forward_batch: AttnForwardMethod.MLA
    )
