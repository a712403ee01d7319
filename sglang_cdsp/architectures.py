"""The model architectures that chunk tasks can run exactly; all others are refused.

A chunk task computes causal softmax attention of every query over every earlier token, from keys
and values of one plain pool, once a layer. A model that does anything else is not refused by SGLang
but answers wrongly, so what is served was read first. Of each class below, in SGLang 0.5.21:

- every layer has one ``RadixAttention``, which makes keys and values of its own;
- it is called with q, k and v alone: no sinks, biases, masks or scores from elsewhere, no soft cap;
- windows and sinks are options of the same class only where the built model shows them
  (``granite.py``, ``granitemoe.py``, ``olmo2.py``), and then it is refused after all;
- nothing else in the model looks at other tokens (convolutions, state spaces, n-grams);
- what depends on a token's place uses the positions that it is given.

``tests/engine/test_architectures.py`` holds the first three against SGLang's source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PLAIN: Mapping[str, str] = {
    "ApertusForCausalLM": "apertus",
    "ArceeForCausalLM": "arcee",
    "BailingMoEForCausalLM": "bailing_moe",
    "BailingMoeForCausalLM": "bailing_moe",
    "BailingMoeV2ForCausalLM": "bailing_moe",
    "ChatGLMModel": "chatglm",
    "DbrxForCausalLM": "dbrx",
    "DeepseekForCausalLM": "deepseek",
    "Ernie4_5_ForCausalLM": "ernie4",
    "Ernie4_5_MoeForCausalLM": "ernie4",
    "ExaoneForCausalLM": "exaone",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "gpt_bigcode",
    "GPTJForCausalLM": "gpt_j",
    "GemmaForCausalLM": "gemma",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4_moe",
    "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granitemoe",
    "GraniteMoeSharedForCausalLM": "granitemoe",
    "IQuestCoderForCausalLM": "llama",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "MiMoForCausalLM": "mimo",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "Ministral3ForCausalLM": "ministral3",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "OPTForCausalLM": "opt",
    "Olmo2ForCausalLM": "olmo2",
    "OlmoForCausalLM": "olmo",
    "OlmoeForCausalLM": "olmoe",
    "OrionForCausalLM": "orion",
    "PersimmonForCausalLM": "persimmon",
    "Phi3ForCausalLM": "llama",
    "PhiForCausalLM": "phi",
    "PhiMoEForCausalLM": "phimoe",
    "QWenLMHeadModel": "qwen",
    "QuantMixtralForCausalLM": "mixtral_quant",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "SolarForCausalLM": "solar",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
    "TeleFLMForCausalLM": "teleflm",
    "XverseForCausalLM": "xverse",
    "XverseMoeForCausalLM": "xverse_moe",
}
"""Class to the module of ``sglang.srt.models`` that was read."""

TRICKS: Mapping[str, str] = {
    "attention_chunk_size": "chunked attention",
    "dual_chunk_attention_config": "dual chunk attention",
    "attn_logit_softcapping": "a soft cap on attention scores",
    "attn_temperature_len": "attention scores that depend on the length",
    "kv_lora_rank": "multi-head latent attention",
    "num_kv_shared_layers": "layers that share keys and values",
    "use_cla": "layers that share keys and values",
    "sparse_attention_config": "sparse attention",
    "index_topk": "sparse attention",
    "linear_attn_config": "linear attention",
}
"""Keys of a ``config.json`` that say so, whatever the architecture is called."""

REMEDY = "serve this model without --cdsp"


def fault(names: Sequence[str] | None, config: Mapping[str, Any]) -> str:
    """Why a model is not served, "" for one that is.

    Args:
        names: the configuration's ``architectures``.
        config: the configuration itself, as in ``config.json``.
    """
    if not names:
        return f"the model's config.json names no architecture; {REMEDY}"
    unread = [name for name in names if name not in PLAIN]
    if unread:
        return (
            f"the model's architecture {', '.join(unread)} is not among those that were read and "
            f"found to have plain attention (docs/support.md); {REMEDY}"
        )
    tricks = sorted({what for key, what in TRICKS.items() if config.get(key)})
    if tricks:
        return f"the model has {' and '.join(tricks)}; {REMEDY}"
    return ""


def table() -> str:
    """The architectures as a Markdown table, for the documentation."""
    lines = ["| read in `sglang.srt.models` | architectures |", "|---|---|"]
    for module in sorted(set(PLAIN.values())):
        names = ", ".join(f"`{name}`" for name in sorted(PLAIN) if PLAIN[name] == module)
        lines.append(f"| `{module}` | {names} |")
    return "\n".join(lines) + "\n"
