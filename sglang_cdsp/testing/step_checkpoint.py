"""A small random Step-3.5, whose model transformers does not have: weights as SGLang loads them.

Three of four layers have a window, and more query heads than the full ones; heads are gated, the
first layer is dense and the others have experts beside a shared one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

Shape = tuple[int, ...]

LAYERS, DENSE = 8, 1
PATTERN = ("full_attention", *("sliding_attention",) * 3)
HEADS, WINDOW_HEADS, KV_HEADS, DIM = 4, 8, 2, 32
EXPERTS = 4

FIELDS: Mapping[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"],
    "model_type": "step3p5",
    "num_key_value_heads": None,
    "num_hidden_layers": LAYERS,
    "layer_types": [*PATTERN, *PATTERN],
    "sliding_window": 64,
    "num_attention_heads": HEADS,
    "num_attention_groups": KV_HEADS,
    "head_dim": DIM,
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": WINDOW_HEADS,
        "num_attention_groups": KV_HEADS,
        "head_dim": DIM,
    },
    "use_head_wise_attn_gate": True,
    "rope_theta": [1e6, 1e4, 1e4, 1e4] * 2,
    "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 2,
    "yarn_only_types": [],
    "rms_norm_eps": 1e-5,
    "moe_layers_enum": ",".join(map(str, range(DENSE, LAYERS))),
    "moe_num_experts": EXPERTS,
    "moe_top_k": 2,
    "moe_intermediate_size": 64,
    "share_expert_dim": 64,
    "share_expert_dims": 64,
    "need_fp32_gate": True,
    "use_moe_router_bias": True,
    "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 1.5,
    "norm_expert_weight": True,
    "swiglu_limits": [0.0] * LAYERS,
    "swiglu_limits_shared": [0.0] * LAYERS,
    # SGLang 0.5.23 reads configurations by transformers first, whose 5.19 has a class for this one
    # and without this refuses to say what differs among its layers.
    "allow_global_per_layer_attribute_access": True,
}
"""Of its configuration, beside those that all checkpoints here have; None for none of these."""


def shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names of the weights in a checkpoint, with their shapes.

    Args:
        config: as in ``config.json``.
    """
    vocabulary, width = int(config["vocab_size"]), int(config["hidden_size"])
    yield "model.embed_tokens.weight", (vocabulary, width)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)
    for layer in range(LAYERS):
        for name, shape in chain(_attention(config, layer), _feed_forward(config, layer)):
            yield f"model.layers.{layer}.{name}", shape


def _attention(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, Shape]]:
    width = int(config["hidden_size"])
    heads = HEADS if config["layer_types"][layer] == "full_attention" else WINDOW_HEADS
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)
    yield "self_attn.q_proj.weight", (heads * DIM, width)
    yield "self_attn.k_proj.weight", (KV_HEADS * DIM, width)
    yield "self_attn.v_proj.weight", (KV_HEADS * DIM, width)
    yield "self_attn.o_proj.weight", (width, heads * DIM)
    yield "self_attn.g_proj.weight", (heads, width)
    yield "self_attn.q_norm.weight", (DIM,)
    yield "self_attn.k_norm.weight", (DIM,)


def _feed_forward(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, Shape]]:
    width = int(config["hidden_size"])
    if layer < DENSE:
        yield from _gated("mlp", (), width, int(config["intermediate_size"]))
        return
    yield "moe.gate.weight", (EXPERTS, width)
    yield "moe.router_bias", (EXPERTS,)
    yield from _gated("moe", (EXPERTS,), width, int(config["moe_intermediate_size"]))
    yield from _gated("share_expert", (), width, int(config["share_expert_dim"]))


def _gated(name: str, many: Shape, width: int, inner: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.gate_proj.weight", (*many, inner, width)
    yield f"{name}.up_proj.weight", (*many, inner, width)
    yield f"{name}.down_proj.weight", (*many, width, inner)
