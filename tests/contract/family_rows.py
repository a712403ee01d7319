"""What families of attention beside the plain one rely on."""

from __future__ import annotations

from tests.contract.needs import Attributes, Base, Fields, Names, Order, Signature
from tests.contract.row import row

DEEPSEEK = "sglang.srt.models.deepseek_v2"
FORMS = "sglang.srt.models.deepseek_common.attention_forward_methods"
HANDLER = "sglang.srt.models.deepseek_common.attention_backend_handler"
POOL = "sglang.srt.mem_cache.memory_pool"
NATIVE = "sglang.srt.layers.attention.torch_native_backend"
TOKENIZER = "sglang.srt.managers.tokenizer_manager"

ROWS = (
    row(
        "engine.latent_form platforms.absorbed",
        "latent layers ask a handler by the name of the backend in force for their form",
        Signature(HANDLER, "AttentionBackendRegistry.register", ("backend_name", "handler_func")),
    ),
    row(
        "engine.latent_form engine.layers",
        "under which name they ask",
        Order(
            DEEPSEEK,
            "DeepseekV2AttentionMLA.dispatch_attn_forward_method",
            (
                "backend.prefill_attention_backend_str or",
                "backend.decode_attention_backend_str or",
                "AttentionBackendRegistry.get_handler(attention_backend)",
                "handler(self, forward_batch)",
            ),
        ),
    ),
    row(
        "engine.latent_form platforms.absorbed",
        "expanded and absorbed",
        Fields(f"{FORMS}.forward_methods", "AttnForwardMethod", ("MHA", "MLA")),
    ),
    row(
        "attention.families.latent",
        "what is read of a latent layer",
        Attributes(
            DEEPSEEK,
            "DeepseekV2AttentionMLA",
            (
                *("attn_mqa", "attn_mha", "kv_b_proj", "num_local_heads", "kv_lora_rank"),
                *("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "use_dsa"),
            ),
        ),
    ),
    row(
        "attention.families.latent",
        "queries of some models depend on their place, in the absorbed form",
        Attributes(DEEPSEEK, "DeepseekV2Model", ("llama_4_scaling_config",)),
    ),
    row(
        "attention.latent_rows",
        "the expanded form stores the latent rows itself",
        Order(
            f"{FORMS}.forward_mha",
            "DeepseekMHAForwardMixin.forward_normal_prepare",
            ("self._set_mla_kv_buffer(", "self.kv_b_proj(kv_a)"),
        ),
    ),
    row(
        "attention.latent_rows",
        "a head's part of a key comes before its value in what expands a latent",
        Order(
            f"{FORMS}.forward_mha",
            "DeepseekMHAForwardMixin.forward_normal_prepare",
            (
                "k_nope = kv[..., :self.qk_nope_head_dim]",
                "v = kv[..., self.qk_nope_head_dim:]",
            ),
        ),
    ),
    row(
        "attention.latent_rows",
        "a row is the latent, then the shared part of the key",
        Order(
            f"{FORMS}.forward_mla",
            "DeepseekMLAForwardMixin.forward_absorb_core",
            ("q = torch.cat([q_nope_out, q_pe], dim=-1)", "k = torch.cat([k_nope, k_pe], dim=-1)"),
        ),
    ),
    row(
        "attention.backend parallel.rebalancer attention.families.latent",
        "latent rows by slot, whose values are a part of them",
        Attributes(POOL, "MLATokenToKVPool", ("get_key_buffer", "get_value_buffer")),
    ),
    row(
        "attention.backend",
        "stores a shard's latent rows",
        Signature(
            POOL, "MLATokenToKVPool.set_kv_buffer", ("layer", "loc_info", "cache_k", "cache_v")
        ),
    ),
    row(
        "engine.model_check platforms.latent_pool",
        "the pool of latent rows is a KV pool",
        Base(POOL, "MLATokenToKVPool", "KVCache"),
    ),
    row(
        "platforms.hooks platforms.absorbed",
        "hooked: latent layers on the torch backend compute the absorbed form",
        Signature(NATIVE, "TorchNativeAttnBackend.__init__", ("model_runner",), exact=True),
    ),
    row(
        "platforms.absorbed",
        "whether a model has latent rows",
        Attributes("sglang.srt.model_executor.model_runner", "ModelRunner", ("use_mla_backend",)),
    ),
    row(
        "engine.ranks",
        "the group of an instance's tensor-parallel ranks",
        Names("sglang.srt.distributed.parallel_state", ("get_tp_group",)),
    ),
    row(
        "engine.ranks",
        "gathers what the ranks have, one after the other",
        Signature(
            "sglang.srt.distributed.parallel_state",
            "GroupCoordinator.all_gather",
            ("input_",),
            ("dim",),
        ),
    ),
    row(
        "attention.families.window attention.windowed",
        "a query sees its own position and so many before it",
        Order(
            NATIVE,
            "TorchNativeAttnBackend._make_sliding_window_mask",
            ("(k_pos <= q_pos) & (k_pos >= q_pos - sliding_window_size)",),
        ),
    ),
    row(
        "engine.model_check",
        "windows and plain layers in one pool, where asked for",
        Names("sglang.srt.configs.model_config", ("is_hybrid_swa_model",)),
    ),
    row(
        "engine.forward",
        "adds 1 to its positions in place, so a chunk gives a copy",
        Order(
            "sglang.srt.models.gemma3_mm",
            "Gemma3ForConditionalGeneration.forward",
            ("positions += 1",),
        ),
    ),
    row(
        "architectures",
        "builds no part that sees images, and has places as a model of text has",
        Order(
            "sglang.srt.models.qwen3_vl",
            "Qwen3VLForConditionalGeneration.__init__",
            (
                "self.language_model_only = getattr(config, 'language_model_only', False)",
                "self.visual = None",
                "not self.language_model_only and 'mrope_section' in self.config.rope_scaling",
            ),
        ),
    ),
    row(
        "hooks control.text_only",
        "replaced: tokenizes a request, and leaves out images that a model does not take",
        Signature(TOKENIZER, "TokenizerManager._tokenize_one_request", ("obj",), exact=True),
    ),
    row(
        "control.text_only",
        "whether a request has more than text",
        Attributes("sglang.srt.managers.io_struct", "GenerateReqInput", ("contains_mm_input",)),
    ),
    row(
        "control.text_only",
        "the model of the server",
        Attributes(TOKENIZER, "TokenizerManager", ("model_config",)),
    ),
    row(
        "control.text_only",
        "the checkpoint's configuration, as transformers has it",
        Attributes("sglang.srt.configs.model_config", "ModelConfig", ("hf_config",)),
    ),
)
