"""Latent attention on SGLang's torch backend: the absorbed form alone.

Imported while SGLang itself is being imported, like all that the platform's hooks name.
"""

from __future__ import annotations

from typing import Any


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
