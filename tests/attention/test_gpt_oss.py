"""A whole gpt-oss, with windows and sinks in turn, answers as transformers' own attention has it.

SGLang serves the model on a GPU alone. Here transformers runs it, and in place of its attention a
group's members compute that of each layer, chunk by chunk, each with the rows that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sglang  # noqa: F401 - declares torchvision's operators before transformers
import torch
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss import modeling_gpt_oss

from sglang_cdsp.parallel.links.lanes import Lane
from tests.attention.in_transformers import Members, Plan
from tests.parallel.ring_cases import thread_lanes

INSTANCES, TOKENS, VOCABULARY = 3, 150, 256
WINDOW = 24
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}

PLANS: dict[str, Plan] = {
    "alone": [(TOKENS, (1,))],
    "together": [(TOKENS, (2, 0, 1))],
    "growing": [(64, (1,)), (36, (1, 2)), (50, (1, 2, 0))],
    "short behind long": [(132, (0, 2)), (12, (0, 2)), (6, (0, 2, 1))],
}


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(INSTANCES)
    yield lanes
    for lane in lanes:
        lane.close()


@pytest.fixture(scope="module")
def model() -> GptOssForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = GptOssForCausalLM._from_config(
            GptOssConfig(**CONFIG), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "sinks" in name:
                    weight.normal_(9.0, 1.5)
                elif weight.dim() > 1:
                    weight.normal_(0.0, 1.6 / weight.shape[-1] ** 0.5)
    return made


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_answers_as_transformers_does(
    plan: Plan, model: GptOssForCausalLM, lanes: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(
        1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(TOKENS)
    )
    with torch.inference_mode():
        expected = model(tokens).logits[0].log_softmax(dim=-1)
        members = Members(plan, lanes)
        monkeypatch.setattr(modeling_gpt_oss, "eager_attention_forward", members.attention)
        found = model(tokens).logits[0].log_softmax(dim=-1)
    assert members.layers == list(range(4))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_windows_and_sinks_matter(model: GptOssForCausalLM) -> None:
    """So that a group that forgot either would be seen."""
    tokens = torch.arange(1, TOKENS + 1)[None]
    with torch.inference_mode():
        expected = model(tokens).logits[0]
        for layer in model.model.layers:
            kept = layer.self_attn.sinks.clone()
            layer.self_attn.sinks.fill_(-1e9)
            without = model(tokens).logits[0]
            layer.self_attn.sinks.copy_(kept)
            assert (without - expected).abs().max() > 1e-2
        earlier = tokens.clone()
        earlier[0, : TOKENS - 4 * WINDOW] = 7
        assert (model(earlier).logits[0, -1] - expected[-1]).abs().max() > 1e-2
