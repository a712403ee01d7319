"""Small random checkpoints, one for each family of attention, whose attention matters.

Their models are transformers' own, so transformers can answer beside a server. Query and key
weights are scaled until attention is peaked: a row that is lost, or read as another one, changes
the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_cdsp.architectures import TEXT_ALONE
from sglang_cdsp.testing.checkpoint import COMPLETE
from sglang_cdsp.testing.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    train_tokenizer,
    write_tokenizer,
)
from sglang_cdsp.testing.weight_names import mistral_name, rename_weights

VOCABULARY = 2048
CONTEXT = 32_768

PEAKED = ("q_proj.weight", "k_proj.weight", "q_b_proj.weight", "kv_a_proj_with_mqa.weight")
"""Weights whose gain makes attention peaked."""

# SGLang's CPU path of RoPE for latent attention asks for a scaling; real checkpoints have YaRN.
YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
}

_EXPERTS: Mapping[str, Any] = {
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}

_GROUPS: Mapping[str, Any] = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}
"""A token's experts are of a few groups of them."""

_DEEPSEEK_EXTRA: Mapping[str, Any] = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}

_LATENT: Mapping[str, Any] = {
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "q_lora_rank": 96,
    "rope_parameters": YARN,
}

_LAYERS = ("sliding_attention", "sliding_attention", "full_attention")
_GEMMA: Mapping[str, Any] = {
    "tie_word_embeddings": True,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "sliding_window": 64,
    "layer_types": [*_LAYERS, *_LAYERS],
}


# Towers for images, of which nothing is computed.
_GEMMA_AROUND: Mapping[str, Any] = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "tie_word_embeddings": True,
}
_QWEN_AROUND: Mapping[str, Any] = {
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 128,
        "deepstack_visual_indexes": [],
    },
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made.

    Attributes:
        config_class: of transformers.
        fields: of the configuration, beside those that all have. Of a model that takes images they
            are its language model's.
        extra: what the real ``config.json`` says and transformers does not write.
        flags: that servers of the model need.
        around: the configuration around the language model's; None for a model of text.
        renamed: a weight's name in the real checkpoint, by transformers' name of it; None for
            models whose names are the same. Transformers cannot load what is renamed.
    """

    config_class: str
    fields: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    around: Mapping[str, Any] | None = None
    renamed: Callable[[str], str] | None = None

    @property
    def auto_class(self) -> str:
        """The class of transformers that makes the model."""
        return "AutoModelForCausalLM" if self.around is None else "AutoModelForImageTextToText"


RECIPES: Mapping[str, Recipe] = {
    "deepseek-v3": Recipe(
        "DeepseekV3Config",
        {**_EXPERTS, **_GROUPS, **_LATENT, "first_k_dense_replace": 1},
        _DEEPSEEK_EXTRA,
    ),
    "kimi-k2": Recipe(
        "DeepseekV3Config",
        {
            **_EXPERTS,
            **_LATENT,
            # Half as many heads as DeepSeek-V3, one group of experts, and more YaRN.
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "routed_scaling_factor": 2.827,
            "first_k_dense_replace": 1,
            "rope_parameters": {
                **YARN,
                "rope_theta": 50_000.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
            },
        },
        _DEEPSEEK_EXTRA,
    ),
    "mistral-large-3": Recipe(
        "DeepseekV3Config",
        {**_EXPERTS, **_LATENT, "first_k_dense_replace": 1},
        {
            **_DEEPSEEK_EXTRA,
            "architectures": ["MistralLarge3ForCausalLM"],
            # The real one has 8,192; prompts here are shorter, and their queries are scaled too.
            "llama_4_scaling": {"original_max_position_embeddings": 512, "beta": 0.1},
        },
        renamed=mistral_name,
    ),
    "glm-4.7-flash": Recipe(
        "Glm4MoeLiteConfig",
        {
            **_EXPERTS,
            **_LATENT,
            "first_k_dense_replace": 1,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
        {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    "gemma-3": Recipe("Gemma3TextConfig", {**_GEMMA, "query_pre_attn_scalar": 32}),
    "gemma-4": Recipe(
        "Gemma4TextConfig",
        {
            **_GEMMA,
            "global_head_dim": 32,
            "num_global_key_value_heads": 2,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": False,
            "enable_moe_block": False,
            "final_logit_softcapping": None,
        },
        flags=("--disable-hybrid-swa-memory",),
    ),
    "gemma-3-vision": Recipe(
        "Gemma3Config",
        {**_GEMMA, "query_pre_attn_scalar": 32},
        around=_GEMMA_AROUND,
    ),
    "qwen3-vl": Recipe(
        "Qwen3VLConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        flags=("--json-model-override-args", json.dumps({TEXT_ALONE: True})),
        around=_QWEN_AROUND,
    ),
    "qwen3-moe": Recipe(
        "Qwen3MoeConfig",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
}
"""By name of the model whose shape a checkpoint has."""


def write_family_checkpoint(directory: Path, name: str, seed: int = 0) -> Path:
    """Write a complete checkpoint in float32, or leave one that is there already.

    Args:
        directory: made if it does not exist.
        name: of its recipe, a key of ``RECIPES``.
        seed: of the weights.

    Returns:
        ``directory``.
    """
    marker, recipe = directory / COMPLETE, RECIPES[name]
    made_from = {"name": name, "seed": seed, "fields": dict(recipe.fields)}
    if marker.exists() and json.loads(marker.read_text()) == json.loads(json.dumps(made_from)):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    _write_model(directory, recipe, seed)
    write_tokenizer(directory, train_tokenizer(VOCABULARY), CONTEXT)
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    generation = json.dumps({**ids, "do_sample": False}, indent=2)
    (directory / "generation_config.json").write_text(generation + "\n")
    marker.write_text(json.dumps(made_from))
    return directory


def _write_model(directory: Path, recipe: Recipe, seed: int) -> None:
    # Imported here: they take seconds, and most tests need none.
    import sglang  # noqa: F401 - declares torchvision's operators first
    import torch
    import transformers

    fields = {**_COMMON, **recipe.fields}
    if recipe.around is not None:
        fields = {**recipe.around, "text_config": fields}
    config = getattr(transformers, recipe.config_class)(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, recipe.auto_class).from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                _draw(key, weight)
    model.save_pretrained(directory)
    if recipe.renamed is not None:
        rename_weights(directory, recipe.renamed)
    path = directory / "config.json"
    written = {**json.loads(path.read_text()), "torch_dtype": "float32", **recipe.extra}
    path.write_text(json.dumps(written, indent=2) + "\n")


def _draw(key: str, weight: Any) -> None:
    """Draw a weight with a gain that keeps activations in scale; norms stay as they are."""
    if weight.dim() < 2:
        return
    gain = 1.6 if key.endswith(PEAKED) else 1.0
    weight.normal_(0.0, gain / weight.shape[-1] ** 0.5)
    if key.endswith("lm_head.weight"):
        # Special tokens never win, so no text ends early.
        weight[: len(SPECIAL_TOKENS)] = 0.0
