"""Small random checkpoints, one for each family of attention, whose attention matters.

Their models are transformers' own where it has them, so that it can answer beside a server. Query
and key weights are scaled until attention is peaked: a row that is lost, or read as another one,
changes the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_cdsp.architectures import TEXT_ALONE
from sglang_cdsp.testing import step_checkpoint
from sglang_cdsp.testing.checkpoint import COMPLETE
from sglang_cdsp.testing.family_weights import Recipe, write_model
from sglang_cdsp.testing.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    train_tokenizer,
    write_tokenizer,
)
from sglang_cdsp.testing.weight_names import mistral_name

VOCABULARY = 2048
CONTEXT = 32_768

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
        "vision_use_head": False,
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


RECIPES: Mapping[str, Recipe] = {
    "deepseek-v3": Recipe(
        "DeepseekV3Config",
        {**_EXPERTS, **_LATENT, "first_k_dense_replace": 1},
        _DEEPSEEK_EXTRA,
    ),
    "deepseek-r1": Recipe(
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
    # Not by its full name: of a folder called mistral-large-3 SGLang wants Mistral's params.json.
    "mistral-large": Recipe(
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
    "exaone-4": Recipe(
        "Exaone4Config",
        {
            **_GEMMA,
            "tie_word_embeddings": False,
            "sliding_window_pattern": "LLG",
            # SGLang's norms of queries and keys have this one, whatever the configuration says.
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        # SGLang asks for a backend of a GPU by the first flag, and computes by the others.
        flags=(
            *("--attention-backend", "triton", "--prefill-attention-backend", "torch_native"),
            *("--decode-attention-backend", "torch_native"),
        ),
    ),
    "step-3.5": Recipe(
        "",
        step_checkpoint.FIELDS,
        flags=("--disable-hybrid-swa-memory",),
        shapes=step_checkpoint.shapes,
    ),
    "gpt-oss": Recipe(
        "GptOssConfig",
        {
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "swiglu_limit": 7.0,
        },
        flags=("--disable-hybrid-swa-memory",),
    ),
    "gemma-3-vision": Recipe(
        "Gemma3Config",
        {**_GEMMA, "query_pre_attn_scalar": 32},
        around=_GEMMA_AROUND,
        published=("vision_tower.", "vision_tower.vision_model."),
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
    write_model(directory, recipe, _COMMON, seed)
    write_tokenizer(directory, train_tokenizer(VOCABULARY), CONTEXT)
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    generation = json.dumps({**ids, "do_sample": False}, indent=2)
    (directory / "generation_config.json").write_text(generation + "\n")
    marker.write_text(json.dumps(made_from))
    return directory
