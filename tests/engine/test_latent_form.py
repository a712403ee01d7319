"""SGLang's latent layers are told the form of the chunk that runs, under a name of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.model_executor.forward_context import ForwardContext, set_forward_context
from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)

from sglang_cdsp.attention.families.latent import ABSORBED, EXPANDED
from sglang_cdsp.engine.latent_form import BACKEND, answer_layers
from sglang_cdsp.engine.layers import LayerSteps
from sglang_cdsp.platforms.absorbed import absorb_latents


@pytest.mark.parametrize(
    ("form", "method"), [(ABSORBED, AttnForwardMethod.MLA), (EXPANDED, AttnForwardMethod.MHA)]
)
def test_layers_compute_the_form_of_the_chunk_in_force(form: str, method: Any) -> None:
    answer_layers()
    before = set_forward_context(ForwardContext(attn_backend=SimpleNamespace(form=form)))
    try:
        handler = AttentionBackendRegistry.get_handler(LayerSteps.prefill_attention_backend_str)
        assert handler(None, None) is method
    finally:
        set_forward_context(before)


def test_the_torch_backend_reads_latent_rows_as_they_are() -> None:
    stock = AttentionBackendRegistry.get_handler("torch_native")
    absorb_latents(None, SimpleNamespace(use_mla_backend=False))
    assert AttentionBackendRegistry.get_handler("torch_native") is stock
    absorb_latents(None, SimpleNamespace(use_mla_backend=True))
    handler = AttentionBackendRegistry.get_handler("torch_native")
    assert handler(None, None) is AttnForwardMethod.MLA


def test_our_name_is_no_backend_of_sglangs() -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    assert BACKEND not in ATTENTION_BACKENDS
