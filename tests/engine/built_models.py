"""Builds real models of SGLang's without weights and prints what is odd about each, as JSON.

A program of its own: SGLang keeps the process's place in its groups in module state.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from sglang.srt import runtime_context
from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.server_args import ServerArgs

from sglang_cdsp.engine.plain_model import odd_parts

LAYERS = 3
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "pad_token_id": 0,
}
WINDOW = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 16,
    "rope_scaling": None,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 24,
    "rope_parameters": YARN,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
GEMMA: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 16,
}
GEMMA4: dict[str, Any] = {
    "global_head_dim": 8,
    "num_global_key_value_heads": 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": False,
    "enable_moe_block": False,
}
EXAONE4: dict[str, Any] = {
    "sliding_window": 16,
    "sliding_window_pattern": "LLG",
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
AROUND_GEMMA: dict[str, Any] = {
    "text_config": {**SHAPE, **GEMMA},
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}
LLAMA4: dict[str, Any] = {
    "text_config": {
        **SHAPE,
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 16,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}
# A name, the architecture, its configuration's class, and what it has beside the shape.
MODELS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("llama", "LlamaForCausalLM", "LlamaConfig", {}),
    ("mistral", "MistralForCausalLM", "LlamaConfig", {}),
    ("qwen2", "Qwen2ForCausalLM", "Qwen2Config", {}),
    ("qwen3", "Qwen3ForCausalLM", "Qwen3Config", {}),
    ("granite", "GraniteForCausalLM", "GraniteConfig", {}),
    ("olmo2", "Olmo2ForCausalLM", "Olmo2Config", {}),
    ("phi3", "Phi3ForCausalLM", "Phi3Config", {}),
    ("stablelm", "StableLmForCausalLM", "StableLmConfig", {}),
    ("mixtral", "MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4}),
    (
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {"num_experts": 4, "moe_intermediate_size": 16},
    ),
    ("olmo2 with a window", "Olmo2ForCausalLM", "Olmo2Config", WINDOW),
    ("deepseek v2", "DeepseekV2ForCausalLM", "DeepseekV2Config", {**LATENT, "q_lora_rank": None}),
    ("deepseek v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", LATENT),
    ("glm 4.7 flash", "Glm4MoeLiteForCausalLM", "Glm4MoeLiteConfig", LATENT),
    ("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA),
    ("gemma3's text", "Gemma3ForConditionalGeneration", "Gemma3Config", AROUND_GEMMA),
    ("gemma4", "Gemma4ForCausalLM", "Gemma4TextConfig", {**GEMMA, **GEMMA4}),
    (
        "gpt-oss",
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "swiglu_limit": 7.0,
        },
    ),
    ("exaone4", "Exaone4ForCausalLM", "Exaone4Config", EXAONE4),
    ("llama4's text", "Llama4ForConditionalGeneration", "Llama4Config", LLAMA4),
    (
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"sliding_window": 16, "hidden_act": "gelu_pytorch_tanh"},
    ),
)


def become_rank(folder: Path, rank: int = 0, size: int = 1) -> None:
    """SGLang's module state of a rank on the CPU; all ``size`` meet by a file in ``folder``."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))
    args = ServerArgs(
        model_path=str(folder),
        device="cpu",
        attention_backend="torch_native",
        disable_radix_cache=True,
        tp_size=size,
    )
    runtime_context.publish(args, role="scheduler")
    init_distributed_environment(
        backend="gloo",
        world_size=size,
        rank=rank,
        local_rank=rank,
        distributed_init_method=f"file://{folder / 'store'}",
    )
    initialize_model_parallel()
    alone = dict.fromkeys(("pp", "dp", "attn_cp", "moe_ep", "moe_dp"), 0)
    ranks = {**alone, **dict.fromkeys(("tp", "attn_tp", "moe_tp"), rank)}
    runtime_context.get_parallel().override_permanently(
        **{f"{name}_rank": number for name, number in ranks.items()}
    )
    initialize_dp_attention(args)


def become_the_only_rank(folder: Path) -> None:
    """The same of a server of one rank."""
    become_rank(folder)


def main(folder: Path) -> None:
    become_the_only_rank(folder)
    found = {}
    for name, architecture, config_class, more in MODELS:
        config = getattr(transformers, config_class)(**{**SHAPE, **more})
        built_by, _ = ModelRegistry.resolve_model_cls([architecture])
        with torch.device("meta"):
            found[name] = odd_parts(built_by(config), LAYERS)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
