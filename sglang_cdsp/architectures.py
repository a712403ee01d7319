"""The model architectures that chunk tasks can run exactly; all others are refused.

A chunk task computes the attention of a layer itself, as one of its families does: causal softmax
attention of every query over every earlier token from keys and values of its own (``PLAIN``), the
same from latent rows (``LATENT``), and layers of the first kind beside layers with a window, with
sinks or without (``WINDOWS``). A model that does anything else is not refused by SGLang but answers
wrongly, so what is served was read first. Of each class in ``PLAIN``, in SGLang 0.5.21:

- every layer has one ``RadixAttention``, which makes keys and values of its own;
- it is called with q, k and v alone: no sinks, biases, masks or scores from elsewhere, no soft cap;
- windows and sinks are options of the same class only where the built model shows them
  (``granite.py``, ``granitemoe.py``, ``olmo2.py``), and then it is refused after all;
- nothing else in the model looks at other tokens (convolutions, state spaces, n-grams);
- what depends on a token's place uses the positions that it is given.

Those in ``LATENT`` build ``DeepseekV2AttentionMLA``, which asks the attention backend in which form
it shall compute. Of those in ``WINDOWS`` the same holds as of plain ones, but for windows and
sinks; in ``CHUNKED`` most layers see no further back than to the last multiple of a number. Those
in ``SEEING`` have a tower for images beside a language model that is one of the others; of them the
text is served, where SGLang serves the model as one of text.
``tests/engine/test_architectures.py`` holds this against SGLang's source.
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

LATENT: Mapping[str, str] = {
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v2",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "MistralLarge3ForCausalLM": "mistral_large_3",
}
"""The same, of models with multi-head latent attention in every layer."""

WINDOWS: Mapping[str, str] = {
    "Exaone4ForCausalLM": "exaone4",
    "Gemma3ForCausalLM": "gemma3_causal",
    "Gemma4ForCausalLM": "gemma4_causal",
    "GptOssForCausalLM": "gpt_oss",
    "Step3p5ForCausalLM": "step3p5",
}
"""The same, of models in which layers with a sliding window, or with sinks, stand beside others."""

CHUNKED: Mapping[str, str] = {
    "Llama4ForConditionalGeneration": "mllama4",
}
"""The same, of models with chunked attention; SGLang computes it in no other class."""

OWN_POOL: frozenset[str] = frozenset(
    {
        "Gemma4ForCausalLM",
        "GptOssForCausalLM",
        "Llama4ForConditionalGeneration",
        "Step3p5ForCausalLM",
    }
)
"""Those of both whose windows SGLang keeps in a pool of their own unless it is told not to."""

IN_ONE_POOL = "--disable-hybrid-swa-memory"
POOLED_APART = (
    "keeps its windows in a pool of their own, and chunk tasks need all layers in one: add "
    f"{IN_ONE_POOL}, here and to decode servers"
)

SEEING: Mapping[str, str] = {
    "Gemma3ForConditionalGeneration": "gemma3_mm",
    **CHUNKED,
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
}
"""The same, of models that take images too and whose text is served."""

TOLD: frozenset[str] = frozenset(
    {"Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"}
)
"""Those of them that SGLang serves with images unless the configuration says otherwise."""

TEXT_ALONE = "language_model_only"
TOLD_BY = (
    "takes images, and a pool serves its text alone: add --json-model-override-args "
    f"'{{\"{TEXT_ALONE}\": true}}', here and to decode servers"
)

IMAGE_PARTS: tuple[str, ...] = ("vision_tower", "vision_model", "multi_modal_projector", "visual")
"""Attributes of models in ``SEEING`` that see images and no text."""

READ: Mapping[str, str] = {**PLAIN, **LATENT, **WINDOWS, **SEEING}
"""All of them."""

OF_LATENT = "multi-head latent attention"
IN_CHUNKS = "chunked attention"

TRICKS: Mapping[str, str] = {
    "attention_chunk_size": IN_CHUNKS,
    "dual_chunk_attention_config": "dual chunk attention",
    "attn_logit_softcapping": "a soft cap on attention scores",
    "attn_temperature_len": "attention scores that depend on the length",
    "kv_lora_rank": OF_LATENT,
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
    unread = [name for name in names if name not in READ]
    if unread:
        return (
            f"the model's architecture {', '.join(unread)} is not among those that were read and "
            f"found to have attention that chunk tasks compute (docs/support.md); {REMEDY}"
        )
    if any(name in TOLD for name in names) and not config.get(TEXT_ALONE):
        return f"the model {TOLD_BY}"
    # A model that takes images has a configuration of its language model inside.
    parts = (config, config.get("text_config") or {})
    tricks = {what for key, what in TRICKS.items() if any(part.get(key) for part in parts)}
    if all(name in LATENT for name in names):
        tricks.discard(OF_LATENT)
    if all(name in CHUNKED for name in names):
        tricks.discard(IN_CHUNKS)
    if tricks:
        return f"the model has {' and '.join(sorted(tricks))}; {REMEDY}"
    return ""


def expands(config: Mapping[str, Any]) -> bool:
    """Whether a model's history costs something of its own: latent rows may be expanded."""
    return any(name in LATENT for name in config.get("architectures") or ())


def table() -> str:
    """The architectures as a Markdown table, for the documentation."""
    lines = ["| read in `sglang.srt.models` | architectures | attention |", "|---|---|---|"]
    for module in sorted(set(READ.values())):
        names = sorted(name for name in READ if READ[name] == module)
        shown = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| `{module}` | {shown} | {_kind(names[0])} |")
    return "\n".join(lines) + "\n"


def _kind(name: str) -> str:
    if name in LATENT:
        return "latent"
    if name in CHUNKED:
        return "of its text: chunked"
    if name in SEEING:
        return "of its text: windows" if name not in TOLD else "of its text: plain"
    return "windows" if name in WINDOWS else "plain"
