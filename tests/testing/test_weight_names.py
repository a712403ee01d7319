"""Weights under the names of Mistral's checkpoints, which SGLang gives DeepSeek's again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sglang.srt.models.mistral_large_3 import MistralLarge3ForCausalLM

from sglang_cdsp.testing.weight_names import mistral_name, rename_weights

LAYER = "model.layers.3."
NAMES = (
    *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    *(LAYER + f"{norm}_layernorm.weight" for norm in ("input", "post_attention")),
    *(LAYER + f"self_attn.{part}_layernorm.weight" for part in ("q_a", "kv_a")),
    *(
        LAYER + f"self_attn.{part}.weight"
        for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    ),
    *(LAYER + f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(LAYER + f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")),
    *(LAYER + f"mlp.experts.12.{part}_proj.weight" for part in ("gate", "up", "down")),
    LAYER + "mlp.gate.weight",
    LAYER + "mlp.gate.e_score_correction_bias",
)


def sglangs_name(name: str) -> str:
    """As ``_iterable_remap_mistral_to_ds`` has it."""
    for pattern, replacement in MistralLarge3ForCausalLM.remapping.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise AssertionError(f"SGLang would leave out {name}")


@pytest.mark.parametrize("name", NAMES)
def test_sglang_finds_every_weight_again(name: str) -> None:
    assert sglangs_name(mistral_name(name)) == name


def test_what_has_no_name_there_is_refused() -> None:
    with pytest.raises(KeyError, match=r"self_attn\.q_proj"):
        mistral_name(LAYER + "self_attn.q_proj.weight")


def test_a_checkpoint_is_renamed_in_place(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    save_file({"lm_head.weight": weight}, tmp_path / "model.safetensors")
    rename_weights(tmp_path, mistral_name)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["output.weight"], weight)
