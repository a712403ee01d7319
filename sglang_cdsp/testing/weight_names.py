"""Names of weights as Mistral's own checkpoints have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

LAYER = r"model\.layers\.(\d+)\."
TO_MISTRAL: tuple[tuple[str, str], ...] = (
    (LAYER + r"input_layernorm\.weight", r"layers.\1.attention_norm.weight"),
    (LAYER + r"post_attention_layernorm\.weight", r"layers.\1.ffn_norm.weight"),
    (LAYER + r"self_attn\.q_a_proj\.weight", r"layers.\1.attention.wq_a.weight"),
    (LAYER + r"self_attn\.q_a_layernorm\.weight", r"layers.\1.attention.q_a_norm.weight"),
    (LAYER + r"self_attn\.q_b_proj\.weight", r"layers.\1.attention.wq_b.weight"),
    (
        LAYER + r"self_attn\.kv_a_proj_with_mqa\.weight",
        r"layers.\1.attention.wkv_a_with_mqa.weight",
    ),
    (LAYER + r"self_attn\.kv_a_layernorm\.weight", r"layers.\1.attention.kv_a_norm.weight"),
    (LAYER + r"self_attn\.kv_b_proj\.weight", r"layers.\1.attention.wkv_b.weight"),
    (LAYER + r"self_attn\.o_proj\.weight", r"layers.\1.attention.wo.weight"),
    (LAYER + r"mlp\.gate_proj\.weight", r"layers.\1.feed_forward.w1.weight"),
    (LAYER + r"mlp\.down_proj\.weight", r"layers.\1.feed_forward.w2.weight"),
    (LAYER + r"mlp\.up_proj\.weight", r"layers.\1.feed_forward.w3.weight"),
    (LAYER + r"mlp\.gate\.weight", r"layers.\1.gate.weight"),
    (LAYER + r"mlp\.gate\.e_score_correction_bias", r"layers.\1.router_biases"),
    (LAYER + r"mlp\.(shared_experts|experts\.\d+)\.gate_proj\.weight", r"layers.\1.\2.w1.weight"),
    (LAYER + r"mlp\.(shared_experts|experts\.\d+)\.down_proj\.weight", r"layers.\1.\2.w2.weight"),
    (LAYER + r"mlp\.(shared_experts|experts\.\d+)\.up_proj\.weight", r"layers.\1.\2.w3.weight"),
    (r"model\.norm\.weight", "norm.weight"),
    (r"model\.embed_tokens\.weight", "tok_embeddings.weight"),
    (r"lm_head\.weight", "output.weight"),
)
"""Transformers' names of DeepSeek-V3's weights to those of Mistral Large 3, whose model it is."""


def mistral_name(name: str) -> str:
    """A weight's name in Mistral's checkpoints.

    Raises:
        KeyError: there is none.
    """
    for pattern, replacement in TO_MISTRAL:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise KeyError(name)


def rename_weights(directory: Path, renamed: Callable[[str], str]) -> None:
    """Rename all weights of a checkpoint in one file."""
    # Imported here: few need it.
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    weights = {renamed(name): weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
