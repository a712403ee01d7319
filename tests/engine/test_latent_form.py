"""SGLang's latent layers are told the form of the chunk that runs, under a name of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_context import ForwardContext, set_forward_context
from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)

from sglang_cdsp.attention.families.latent import ABSORBED, EXPANDED, Latent, latent_layers
from sglang_cdsp.attention.families.types import ShardChunk
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.engine.latent_form import BACKEND, answer_layers
from sglang_cdsp.engine.layers import LayerSteps
from sglang_cdsp.parallel.spans import split_chunk
from sglang_cdsp.platforms.absorbed import absorb_latents
from tests.engine.family_models import LatentModel


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


def test_without_a_kernel_for_long_rows_chunks_expand_and_scaled_models_are_refused() -> None:
    layers = latent_layers(LatentModel())
    chunk = ShardChunk(
        RingLayout((0,), 0, (500,), split_chunk(500, 3, 1, 1)), None, torch.arange(503)
    )
    assert Latent(layers).begin(chunk).form == ABSORBED
    assert Latent(layers, absorbs=False).begin(chunk).form == EXPANDED
    scaled = Latent(layers, scaled=True, absorbs=False)
    assert "no kernel on this device" in scaled.faults(layers[0].absorbed)[0]
    assert Latent(layers, scaled=True).faults(layers[0].absorbed) == []


def test_queries_that_are_scaled_by_their_place_are_never_expanded() -> None:
    layers = latent_layers(LatentModel())
    chunk = ShardChunk(
        RingLayout((0,), 0, (0,), split_chunk(0, 900, 1, 1)), None, torch.arange(900)
    )
    assert Latent(layers).begin(chunk).form == EXPANDED
    assert Latent(layers, scaled=True).begin(chunk).form == ABSORBED
