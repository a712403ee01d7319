"""A whole Llama 4, chunked layers and full ones in turn, answers as transformers' own attention.

SGLang computes its chunked layers with one backend of GPUs alone. Here transformers runs the model,
and in place of its attention a group's members compute that of each layer, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sglang  # noqa: F401 - declares torchvision's operators before transformers
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig
from transformers.models.llama4 import modeling_llama4

from sglang_cdsp.parallel.links.lanes import Lane
from tests.attention.in_transformers import Members, Plan
from tests.parallel.ring_cases import thread_lanes

INSTANCES, TOKENS, VOCABULARY, LAYERS = 3, 150, 256, 4
CHUNK = 40
"""Not a multiple of a page, nor do the plans' chunks end there."""

CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "attention_chunk_size": CHUNK,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "floor_scale": 32,
    "attn_scale": 0.1,
    "pad_token_id": 0,
}
PLANS: dict[str, Plan] = {
    "alone": [(TOKENS, (1,))],
    "together": [(TOKENS, (2, 0, 1))],
    "growing": [(64, (1,)), (36, (1, 2)), (50, (1, 2, 0))],
    "within one": [(44, (0,)), (20, (0, 2)), (12, (0, 2)), (74, (0, 2, 1))],
    "at their ends": [(40, (2,)), (40, (2, 1)), (40, (2, 1)), (30, (2, 1, 0))],
}


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(INSTANCES)
    yield lanes
    for lane in lanes:
        lane.close()


@pytest.fixture(scope="module")
def model() -> Llama4ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = Llama4ForCausalLM._from_config(
            Llama4TextConfig(**CONFIG), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            for weight in made.parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, 1.6 / weight.shape[-1] ** 0.5)
    return made


def drawn(seed: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_answers_as_transformers_does(
    plan: Plan, model: Llama4ForCausalLM, lanes: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = drawn(TOKENS)
    with torch.inference_mode():
        expected = model(tokens).logits[0].log_softmax(dim=-1)
        members = Members(plan, lanes, CHUNK)
        monkeypatch.setattr(modeling_llama4, "eager_attention_forward", members.attention)
        found = model(tokens).logits[0].log_softmax(dim=-1)
    assert members.layers == list(range(LAYERS))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_the_borders_of_chunks_matter(
    model: Llama4ForCausalLM, lanes: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a group that saw across them, or forgot what lies before, would be seen."""
    tokens = drawn(1)
    with torch.inference_mode():
        expected = model(tokens).logits[0]
        for size in (None, CHUNK - 1, CHUNK + 1):
            members = Members(PLANS["together"], lanes, size)
            with monkeypatch.context() as patch:
                patch.setattr(modeling_llama4, "eager_attention_forward", members.attention)
                assert (model(tokens).logits[0] - expected).abs().max() > 1e-2
