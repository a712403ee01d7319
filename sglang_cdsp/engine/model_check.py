"""Which models, KV formats and attention backends chunk tasks can run exactly.

What was read and found plain is served, everything else stops the server: by its configuration
before weights are loaded, by the built model and its memory after.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from torch import nn

from sglang_cdsp import architectures
from sglang_cdsp.architectures import PLAIN, REMEDY
from sglang_cdsp.engine.plain_model import odd_parts
from sglang_cdsp.engine.stock import KVPool, ModelConfig, StockScheduler

BUILT_IN = "sglang.srt.models."

# SGLang's backends that keep to the plain layout of the KV pool and carry the pools that a chunk
# task needs; they serve stock batches, a chunk task brings an attention of its own.
BACKENDS = {
    "FlashAttentionBackend": "fa3 or fa4",
    "FlashInferAttnBackend": "flashinfer",
    "IntelAMXAttnBackend": "intel_amx",
    "TRTLLMHAAttnBackend": "trtllm_mha",
    "TorchFlexAttnBackend": "flex_attention",
    "TorchNativeAttnBackend": "torch_native",
    "TritonAttnBackend": "triton",
}
HYBRID = "HybridAttnBackend"


class UnsupportedModel(SystemExit):
    """The model cannot be served with ``--cdsp``. (SGLang does not swallow SystemExit.)"""


def check_config(config: ModelConfig) -> None:
    """Refuse a model by its configuration, before its weights are loaded.

    Raises:
        UnsupportedModel: names the property.
    """
    hf_config = config.hf_config
    if fault := architectures.fault(hf_config.architectures, hf_config.to_dict()):
        raise UnsupportedModel(f"sglang-cdsp: {fault}")
    refused = {
        "takes images, audio or video": bool(config.is_multimodal),
        "generates nothing": not config.is_generation,
        "uses multi-head latent attention": config.attention_arch != AttentionArch.MHA,
        "has sliding-window layers": bool(config.is_hybrid_swa),
        "has chunked attention": config.attention_chunk_size is not None,
        "encodes before it decodes": bool(config.is_encoder_decoder),
    }
    _refuse(f"the model {what}" for what, present in refused.items() if present)


def check_model(scheduler: StockScheduler) -> None:
    """Refuse what the shards' attention or transfer would get wrong, in the built model.

    Raises:
        UnsupportedModel: names the property.
    """
    config = scheduler.model_config
    runner = scheduler.tp_worker.model_runner
    _refuse(
        [
            *(["the model has sliding-window layers"] if scheduler.is_hybrid_swa else []),
            *_odd_class(type(runner.model)),
            *odd_parts(runner.model, int(config.num_hidden_layers)),
        ]
    )
    _check_pool(runner.token_to_kv_pool, runner.dtype)
    _refuse(_odd_buffers(runner.token_to_kv_pool, runner.model))
    _check_backend(runner.attn_backend)


def _refuse(reasons: Any) -> None:
    if found := list(reasons):
        raise UnsupportedModel(f"sglang-cdsp: {'; '.join(found)}; {REMEDY}")


def _odd_class(built: type) -> list[str]:
    """A configuration's architecture may be built by another class of the same or another name."""
    if built.__name__ in PLAIN and built.__module__ == BUILT_IN + PLAIN[built.__name__]:
        return []
    return [
        f"the model was built as {built.__module__}.{built.__name__}, which was not read; "
        "leave out --model-impl and external model packages"
    ]


def _check_pool(pool: KVPool, dtype: Any) -> None:
    if type(pool) is not MHATokenToKVPool or pool.kv_cache_layout != "nhd":
        layout = getattr(pool, "kv_cache_layout", "its own")
        raise UnsupportedModel(
            f"sglang-cdsp: KV is kept by {type(pool).__name__} in layout {layout}, not in plain "
            "slots; remove --enable-page-major-kv-layout, --enable-unified-memory and "
            "--enable-hisparse, unset SGLANG_USE_HND_KVCACHE and SGLANG_AITER_KV_CACHE_LAYOUT"
        )
    if pool.dtype != dtype:
        raise UnsupportedModel(
            f"sglang-cdsp: KV is kept as {pool.dtype}, the model computes in {dtype}; remove "
            "--kv-cache-dtype, or, where the checkpoint asks for FP8 KV itself, set "
            "--kv-cache-dtype bfloat16 and --dtype bfloat16"
        )


def _odd_buffers(pool: KVPool, model: nn.Module) -> list[str]:
    """Layers whose keys and values are not ``[slots, heads, dim]`` as their attention has them."""
    odd = []
    for layer in (m for m in model.modules() if isinstance(m, RadixAttention)):
        keys = tuple(pool.get_key_buffer(layer.layer_id).shape)
        values = tuple(pool.get_value_buffer(layer.layer_id).shape)
        wanted_k = (layer.tp_k_head_num, layer.qk_head_dim)
        wanted_v = (layer.tp_v_head_num, layer.v_head_dim)
        if keys[1:] != wanted_k or values[1:] != wanted_v:
            odd.append(f"the KV of layer {layer.layer_id} is {list(keys)} and {list(values)}")
    if not odd:
        return []
    return [f"{odd[0]}, not a row of heads a slot" + (f" ({len(odd)} such)" if odd[1:] else "")]


def _check_backend(backend: Any) -> None:
    parts = [backend]
    if type(backend).__name__ == HYBRID:
        parts = [backend.prefill_backend, backend.decode_backend]
    odd = sorted({type(part).__name__ for part in parts} - set(BACKENDS))
    if odd:
        raise UnsupportedModel(
            f"sglang-cdsp: the attention backend {', '.join(odd)} was not tried with chunk tasks; "
            f"set --attention-backend to one of {', '.join(sorted(BACKENDS.values()))}, and "
            "remove --prefill-attention-backend and --decode-attention-backend"
        )
