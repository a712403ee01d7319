"""Models, KV pools and attention backends that are not known to be plain end the start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.layers.attention import attention_registry
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.models.deepseek_v2 import DeepseekV3ForCausalLM
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.mllama4 import Llama4ForConditionalGeneration
from torch import nn

from sglang_cdsp.engine.model_check import (
    BACKENDS,
    LATENT_BACKENDS,
    UnsupportedModel,
    check_config,
    check_model,
)
from sglang_cdsp.engine.scheduler import PoolScheduler
from sglang_cdsp.protocol.lives import Life

LAYERS = 2
PLAIN: dict[str, Any] = {
    "is_multimodal": False,
    "is_generation": True,
    "attention_arch": AttentionArch.MHA,
    "is_hybrid_swa": False,
    "attention_chunk_size": None,
    "is_encoder_decoder": False,
    "num_hidden_layers": LAYERS,
}


class Config(SimpleNamespace):
    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def model_config(architecture: str = "LlamaForCausalLM", **changed: Any) -> Any:
    ours = {name: changed.pop(name) for name in list(changed) if name in PLAIN}
    config = Config(architectures=[architecture], **changed)
    return SimpleNamespace(**{**PLAIN, **ours}, hf_config=config)


def unmade(kind: type, **attributes: Any) -> Any:
    """An object of a class of SGLang's, without what its constructor needs."""
    made: Any = object.__new__(kind)
    if isinstance(made, nn.Module):
        nn.Module.__init__(made)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def backend(name: str) -> Any:
    return type(name, (), {})()


def pool(kind: type = MHATokenToKVPool, *, keys: Any = (9, 2, 2), **changed: Any) -> Any:
    """SGLang's pool, its K and V of one shape at each layer."""
    buffer = lambda layer_id: torch.empty(keys)  # noqa: E731
    plain = {"dtype": torch.bfloat16, "kv_cache_layout": "nhd"}
    return unmade(kind, get_key_buffer=buffer, get_value_buffer=buffer, **{**plain, **changed})


def scheduler(**changed: Any) -> Any:
    layers = nn.ModuleList(RadixAttention(2, 2, 0.5, 2, layer_id=i) for i in range(LAYERS))
    runner = {
        "model": unmade(LlamaForCausalLM, layers=layers),
        "token_to_kv_pool": pool(),
        "dtype": torch.bfloat16,
        "attn_backend": backend("TritonAttnBackend"),
    }
    runner |= {name: changed.pop(name) for name in list(changed) if name in runner}
    return SimpleNamespace(
        model_config=model_config(),
        is_hybrid_swa=False,
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(**runner)),
        **changed,
    )


def latent_pool(kind: type = MLATokenToKVPool, *, row: int = 8) -> Any:
    """SGLang's pool of latent rows, whose values are a part of its keys."""
    rows = torch.empty(9, 1, row)
    return unmade(
        kind,
        get_key_buffer=lambda layer_id: rows,
        get_value_buffer=lambda layer_id: rows[..., :6],
        dtype=torch.bfloat16,
    )


def latent_scheduler(**changed: Any) -> Any:
    """Layers of two heads, latents of 6 numbers and 2 that all heads share."""

    def layer(number: int) -> nn.Module:
        return unmade(
            nn.Module,
            num_local_heads=2,
            kv_lora_rank=6,
            qk_rope_head_dim=2,
            qk_nope_head_dim=4,
            v_head_dim=3,
            kv_b_proj=nn.Identity(),
            attn_mqa=RadixAttention(2, 8, 0.5, 1, layer_id=number, v_head_dim=6),
            attn_mha=RadixAttention(2, 6, 0.5, 2, layer_id=number, v_head_dim=3),
        )

    layers = nn.ModuleList(layer(number) for number in range(LAYERS))
    latent: dict[str, Any] = {
        "model": unmade(DeepseekV3ForCausalLM, layers=layers),
        "token_to_kv_pool": latent_pool(),
        "attn_backend": backend("TorchNativeAttnBackend"),
    }
    return scheduler(**{**latent, **changed})


def latent_refusal(**changed: Any) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        check_model(latent_scheduler(**changed))
    return str(caught.value)


def test_a_plain_model_passes() -> None:
    check_config(model_config())
    check_model(scheduler())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"is_multimodal": True}, "takes images, audio or video"),
        ({"is_generation": False}, "generates nothing"),
        ({"attention_arch": AttentionArch.MLA}, "uses latent attention, which was not expected"),
        ({"attention_chunk_size": 8192}, "has chunked attention"),
        ({"is_encoder_decoder": True}, "encodes before it decodes"),
        ({"architecture": "Llama4ForCausalLM"}, "Llama4ForCausalLM is not among those"),
        ({"architecture": "MiniMaxM3SparseForCausalLM"}, "MiniMaxM3SparseForCausalLM is not"),
        ({"dual_chunk_attention_config": {"chunk_size": 1}}, "has dual chunk attention"),
        ({"kv_lora_rank": 512}, "has multi-head latent attention"),
        ({"num_kv_shared_layers": 15}, "has layers that share keys and values"),
    ],
)
def test_a_configuration_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        check_config(model_config(**changed))
    assert says in str(caught.value)
    assert "serve this model without --cdsp" in str(caught.value)


def test_latent_attention_of_several_ranks_is_refused_in_one_server() -> None:
    config = model_config(
        "DeepseekV3ForCausalLM", attention_arch=AttentionArch.MLA, kv_lora_rank=512
    )
    check_config(config, tp_size=2)
    check_config(config, one_server=True)
    with pytest.raises(UnsupportedModel, match="several ranks an instance"):
        check_config(config, tp_size=2, one_server=True)
    check_config(model_config(), tp_size=2, one_server=True)


def refusal(**changed: Any) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        check_model(scheduler(**changed))
    message = str(caught.value)
    assert message.startswith("sglang-cdsp: ")
    assert "\n" not in message
    return message


def test_a_built_model_with_a_trick_is_refused() -> None:
    layers = [RadixAttention(2, 2, 0.5, 2, layer_id=i, use_irope=True) for i in range(LAYERS)]
    message = refusal(model=unmade(LlamaForCausalLM, layers=nn.ModuleList(layers)))
    assert "2 layers have chunked attention; serve this model without --cdsp" in message


def test_a_plain_name_built_by_somebody_else_is_refused() -> None:
    """``--model-impl transformers``, or an external package that registers the same name."""
    foreign = type("LlamaForCausalLM", (nn.Module,), {"__module__": "elsewhere.llama"})
    assert "built as elsewhere.llama.LlamaForCausalLM" in refusal(model=foreign())
    other = type("TransformersForCausalLM", (nn.Module,), {"__module__": "sglang.srt.models.t"})
    assert "leave out --model-impl" in refusal(model=other())


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (unmade(MHATokenToKVPool, dtype=torch.bfloat16, kv_cache_layout="hnd"), "layout hnd"),
        (
            unmade(MHATokenToKVPool, dtype=torch.bfloat16, kv_cache_layout="vectorized_5d"),
            "unset SGLANG_USE_HND_KVCACHE and SGLANG_AITER_KV_CACHE_LAYOUT",
        ),
        (
            unmade(type("PageMajor", (MHATokenToKVPool,), {}), kv_cache_layout="nhd"),
            "KV is kept by PageMajor",
        ),
        (
            unmade(MHATokenToKVPool, dtype=torch.float16, kv_cache_layout="nhd"),
            "remove --kv-cache-dtype",
        ),
        *(
            (
                pool(dtype=dtype),
                "where the checkpoint asks for FP8 KV itself, set --kv-cache-dtype bfloat16",
            )
            for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        ),
        (pool(keys=(9, 4)), "KV of layer 0 is [9, 4] and [9, 4], not a row of heads a slot (2 suc"),
        (pool(keys=(2, 9, 2)), "serve this model without --cdsp"),
        (pool(keys=(9, 2, 4)), "[9, 2, 4]"),
    ],
)
def test_kv_that_is_not_kept_in_plain_slots_is_refused(kept: Any, says: str) -> None:
    assert says in refusal(token_to_kv_pool=kept)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_backend_that_was_read_passes(name: str) -> None:
    check_model(scheduler(attn_backend=backend(name)))


@pytest.mark.parametrize("name", ["WaveAttnBackend", "TboAttnBackend", "DualChunkBackend"])
def test_any_other_backend_is_refused(name: str) -> None:
    message = refusal(attn_backend=backend(name))
    assert f"the attention backend {name} was not tried" in message
    assert "set --attention-backend to one of fa3 or fa4, flashinfer" in message


def chunked(**changed: Any) -> Any:
    """Layers whose attention begins anew at multiples of 16, and a last one without."""
    layers = nn.ModuleList(
        RadixAttention(2, 2, 0.5, 2, layer_id=i, use_irope=i < LAYERS - 1) for i in range(LAYERS)
    )
    config = SimpleNamespace(text_config=SimpleNamespace(attention_chunk_size=16))
    model = unmade(Llama4ForConditionalGeneration, layers=layers, config=config)
    return scheduler(model=model, **changed)


def test_chunked_attention_is_served_by_the_one_backend_that_computes_it() -> None:
    config = model_config("Llama4ForConditionalGeneration", attention_chunk_size=16)
    check_config(config)
    with pytest.raises(UnsupportedModel, match="has chunked attention"):
        check_config(model_config(attention_chunk_size=16))
    check_model(chunked(attn_backend=backend("FlashAttentionBackend")))
    for name in set(BACKENDS) - {"FlashAttentionBackend"}:
        with pytest.raises(UnsupportedModel, match="set --attention-backend to one of fa3,"):
            check_model(chunked(attn_backend=backend(name)))


@pytest.mark.parametrize("name", sorted(LATENT_BACKENDS))
def test_a_latent_model_has_backends_of_its_own(name: str) -> None:
    check_model(latent_scheduler(attn_backend=backend(name)))
    assert "FlashInferAttnBackend" in latent_refusal(attn_backend=backend("FlashInferAttnBackend"))


def test_latent_rows_in_another_pool_are_refused() -> None:
    quantised = type("MLATokenToKVPoolFP4", (MLATokenToKVPool,), {"__module__": "sglang.x"})
    assert "KV is kept by MLATokenToKVPoolFP4" in latent_refusal(
        token_to_kv_pool=latent_pool(quantised)
    )
    assert "the KV of layer 0 is [9, 1, 7]" in latent_refusal(token_to_kv_pool=latent_pool(row=7))


def test_windows_in_a_pool_of_their_own_are_refused_with_the_flag() -> None:
    with pytest.raises(UnsupportedModel, match="add --disable-hybrid-swa-memory, here and to"):
        check_config(model_config("Gemma4ForCausalLM", is_hybrid_swa=True))
    check_config(model_config("Gemma4ForCausalLM"))


def test_a_latent_model_passes_by_its_configuration() -> None:
    latent = {"kv_lora_rank": 512, "attention_arch": AttentionArch.MLA}
    check_config(model_config("DeepseekV3ForCausalLM", **latent))
    with pytest.raises(UnsupportedModel, match="latent attention, which was not expected"):
        check_config(model_config("DeepseekV3ForCausalLM", kv_lora_rank=512))


def test_both_halves_of_a_split_backend_count() -> None:
    split = backend("HybridAttnBackend")
    split.prefill_backend = backend("FlashAttentionBackend")
    split.decode_backend = backend("FlashInferAttnBackend")
    check_model(scheduler(attn_backend=split))
    split.decode_backend = backend("AiterAttnBackend")
    assert "AiterAttnBackend" in refusal(attn_backend=split)


def test_every_backend_that_was_read_is_one_of_sglangs() -> None:
    for flags in BACKENDS.values():
        for flag in flags.split(" or "):
            assert flag in attention_registry.ATTENTION_BACKENDS


def test_a_scheduler_refuses_by_the_configuration_before_it_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SGLang makes the configuration, then the worker that loads; see `tests/contract`."""

    def stocks(self: Any) -> None:
        self.model_config = model_config("Llama4ForCausalLM")

    monkeypatch.setattr(PoolScheduler.__mro__[1], "init_model_config", stocks)
    monkeypatch.setattr("sglang_cdsp.engine.scheduler.this_life", lambda: Life("pool", 0, 1))
    parallel = SimpleNamespace(tp_rank=0, tp_size=1)
    monkeypatch.setattr("sglang_cdsp.engine.scheduler.get_parallel", lambda: parallel)
    alone = SimpleNamespace(disaggregation_mode="null")
    monkeypatch.setattr("sglang_cdsp.engine.scheduler.get_disagg", lambda: alone)
    with pytest.raises(UnsupportedModel, match="Llama4ForCausalLM"):
        object.__new__(PoolScheduler).init_model_config()
