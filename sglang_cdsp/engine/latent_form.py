"""In which form SGLang's latent attention computes during a chunk's forward.

SGLang's layers ask by the name of the attention backend that is published. A handler under a name
of our own answers for chunks, whatever answers for SGLang's own batches.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.model_executor.forward_context import get_attn_backend

from sglang_cdsp.attention.families.latent import EXPANDED

BACKEND = "cdsp"


def answer_layers() -> None:
    """Let the layers of latent models ask the chunk that runs."""
    # Imported here: models without latent attention need none of it.
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
    )
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    def form(attention: Any, forward_batch: Any) -> AttnForwardMethod:
        expanded = get_attn_backend().form == EXPANDED
        return AttnForwardMethod.MHA if expanded else AttnForwardMethod.MLA

    AttentionBackendRegistry.register(BACKEND, form)
