"""Which models, KV formats and attention backends chunk tasks can run exactly.

What was read and found plain is served, everything else stops the server: by its configuration
before weights are loaded, by the built model and its memory after.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

from sglang_cdsp import architectures
from sglang_cdsp.architectures import CHUNKED, IN_CHUNKS, LATENT, POOLED_APART, READ, REMEDY
from sglang_cdsp.attention.families.claims import Claims, claim
from sglang_cdsp.attention.families.types import Component
from sglang_cdsp.engine.plain_model import odd_parts
from sglang_cdsp.engine.stock import KVPool, ModelConfig, StockScheduler
from sglang_cdsp.parallel.rebalancer import rows_of_layer

logger = logging.getLogger(__name__)

BUILT_IN = "sglang.srt.models."
PLATFORM = "sglang_cdsp.platforms."

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
LATENT_BACKENDS = {
    "FlashAttentionBackend": "fa3 or fa4",
    "FlashInferMLAAttnBackend": "flashinfer",
    "FlashMLABackend": "flashmla",
    "TorchNativeAttnBackend": "torch_native",
    "TRTLLMMLABackend": "trtllm_mla",
    "TritonAttnBackend": "triton",
}
"""The same for pools of latent rows."""

CHUNKED_BACKENDS = {"FlashAttentionBackend": "fa3"}
"""The same for models with chunked attention: all others compute full attention."""

HYBRID = "HybridAttnBackend"


class UnsupportedModel(SystemExit):
    """The model cannot be served with ``--cdsp``. (SGLang does not swallow SystemExit.)"""


def check_config(config: ModelConfig, *, tp_size: int = 1, one_server: bool = False) -> None:
    """Refuse a model by its configuration, before its weights are loaded.

    Args:
        config: SGLang's.
        tp_size: ranks of an instance.
        one_server: whether the pool decodes itself.

    Raises:
        UnsupportedModel: names the property.
    """
    hf_config = config.hf_config
    if fault := architectures.fault(hf_config.architectures, hf_config.to_dict()):
        raise UnsupportedModel(f"sglang-cdsp: {fault}")
    latent = any(name in LATENT for name in hf_config.architectures)
    chunked = all(name in CHUNKED for name in hf_config.architectures)
    expected = AttentionArch.MLA if latent else AttentionArch.MHA
    if config.is_hybrid_swa:
        raise UnsupportedModel(f"sglang-cdsp: the model {POOLED_APART}")
    refused = {
        "takes images, audio or video": bool(config.is_multimodal),
        "generates nothing": not config.is_generation,
        "uses latent attention, which was not expected of it": config.attention_arch != expected,
        "has latent attention, which was not tried with several ranks an instance (--tp-size) in "
        "one server": latent and tp_size > 1 and one_server,
        f"has {IN_CHUNKS}": config.attention_chunk_size is not None and not chunked,
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
    if scheduler.is_hybrid_swa:
        raise UnsupportedModel(f"sglang-cdsp: the model {POOLED_APART}")
    _refuse(
        [
            *_odd_class(type(runner.model)),
            *odd_parts(runner.model, int(config.num_hidden_layers)),
        ]
    )
    claims = claim(runner.model)
    latent = type(runner.model).__name__ in LATENT
    _check_pool(runner.token_to_kv_pool, runner.dtype, latent)
    _refuse(_odd_buffers(runner.token_to_kv_pool, claims))
    _check_backend(runner.attn_backend, _backends(type(runner.model).__name__))
    logger.info("sglang-cdsp computes the attention of chunks: %s", claims.described())


def _refuse(reasons: Any) -> None:
    if found := list(reasons):
        raise UnsupportedModel(f"sglang-cdsp: {'; '.join(found)}; {REMEDY}")


def _odd_class(built: type) -> list[str]:
    """A configuration's architecture may be built by another class of the same or another name."""
    if built.__name__ in READ and built.__module__ == BUILT_IN + READ[built.__name__]:
        return []
    return [
        f"the model was built as {built.__module__}.{built.__name__}, which was not read; "
        "leave out --model-impl and external model packages"
    ]


def _check_pool(pool: KVPool, dtype: Any, latent: bool) -> None:
    if latent:
        # The CPU platform has a class of its own for it (``platforms/latent_pool.py``).
        kind = type(pool)
        plain = kind is MLATokenToKVPool or (
            kind.__module__.startswith(PLATFORM) and kind.__bases__ == (MLATokenToKVPool,)
        )
    else:
        plain = type(pool) is MHATokenToKVPool and pool.kv_cache_layout == "nhd"
    if not plain:
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


def _odd_buffers(pool: KVPool, claims: Claims) -> list[str]:
    """Layers whose rows in the pool are not those that their family has."""
    odd = [
        f"layer {layer} has {spec.leaves.value} to send, while the pool sends KV pages alone"
        for layer, spec in claims.specs.items()
        if spec.leaves is not Component.KV
    ]
    if odd:
        return odd[:1]
    for layer, spec in claims.specs.items():
        shapes = [tuple(buffer.shape) for buffer in rows_of_layer(pool, layer)]
        if tuple(shape[1:] for shape in shapes) != spec.buffers:
            kept = " and ".join(str(list(shape)) for shape in shapes)
            odd.append(f"the KV of layer {layer} is {kept}")
    if not odd:
        return []
    return [f"{odd[0]}, not a row of heads a slot" + (f" ({len(odd)} such)" if odd[1:] else "")]


def _backends(model: str) -> Mapping[str, str]:
    """Those that a model's stock batches may run on, by the model's class."""
    if model in CHUNKED:
        return CHUNKED_BACKENDS
    return LATENT_BACKENDS if model in LATENT else BACKENDS


def _check_backend(backend: Any, known: Mapping[str, str]) -> None:
    parts = [backend]
    if type(backend).__name__ == HYBRID:
        parts = [backend.prefill_backend, backend.decode_backend]
    odd = sorted({type(part).__name__ for part in parts} - set(known))
    if odd:
        raise UnsupportedModel(
            f"sglang-cdsp: the attention backend {', '.join(odd)} was not tried with chunk tasks; "
            f"set --attention-backend to one of {', '.join(sorted(known.values()))}, and "
            "remove --prefill-attention-backend and --decode-attention-backend"
        )
