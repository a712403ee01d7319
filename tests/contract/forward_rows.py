"""What a shard's forward and its attention rely on."""

from __future__ import annotations

from tests.contract.needs import Attributes, Base, Calls, Fields, Names, Order, Signature
from tests.contract.row import row

SCHEDULER = "sglang.srt.managers.scheduler"
INFO = "sglang.srt.model_executor.forward_batch_info"
CONTEXTS = "sglang.srt.runtime_context"
CONTEXT = "sglang.srt.model_executor.forward_context"
EAGER = "sglang.srt.model_executor.runner.eager_runner"
RUNNER = "sglang.srt.model_executor.model_runner"
RADIX = "sglang.srt.layers.radix_attention"
POOL = "sglang.srt.mem_cache.memory_pool"
ALLOCATOR = "sglang.srt.mem_cache.allocator"
CONFIG = "sglang.srt.configs.model_config"

ROWS = (
    row(
        "engine.forward engine.prompt_logprobs",
        "SGLang's input of one forward, built by hand",
        Fields(
            INFO,
            "ForwardBatch",
            (
                "forward_mode",
                "batch_size",
                "input_ids",
                "req_pool_indices",
                "seq_lens",
                "out_cache_loc",
                "seq_lens_sum",
                "orig_seq_lens",
                "seq_lens_cpu",
                "positions",
                "extend_num_tokens",
                "extend_seq_lens",
                "extend_prefix_lens",
                "extend_start_loc",
                "extend_prefix_lens_cpu",
                "extend_seq_lens_cpu",
                "extend_logprob_start_lens_cpu",
                "extend_input_logprob_token_ids_gpu",
                "capture_hidden_mode",
                "global_num_token_non_padded_cpu",
                "top_logprobs_nums",
                "token_ids_logprobs",
                "return_logprob",
                "sampling_info",
                "rids",
            ),
        ),
    ),
    row(
        "engine.forward",
        "the configured backend does not plan for rows that it never sees",
        Signature(INFO, "ForwardBatch.mark_forward_metadata_ready", ()),
    ),
    row("engine.forward engine.sampling", "a prefill", Fields(INFO, "ForwardMode", ("EXTEND",))),
    row("engine.forward", "no hidden states", Fields(INFO, "CaptureHiddenMode", ("NULL",))),
    row(
        "engine.forward",
        "the attention backend of one forward",
        Fields(CONTEXT, "ForwardContext", ("attn_backend",)),
    ),
    row(
        "engine.forward engine.forward_state",
        "put in force, and the one before returned",
        Signature(CONTEXT, "set_forward_context", ("ctx",)),
    ),
    row(
        "engine.forward_state",
        "per-forward flags that live in one place for the whole process",
        Names(CONTEXTS, ("get_forward",)),
    ),
    row(
        "engine.forward_state",
        "which flags these are",
        Fields(CONTEXTS, "ForwardFlags", ("_GRAPH_VISIBLE",)),
    ),
    row(
        "engine.forward_state",
        "flags put back at a switch",
        Signature(CONTEXTS, "ForwardFlags.set", ("name", "value")),
    ),
    row(
        "engine.forward_state",
        "the normal loop launches its forwards on the stream that the loop runs on",
        Order(SCHEDULER, "Scheduler.run_event_loop", ("StreamContext(self.schedule_stream)",)),
    ),
    row(
        "engine.forward_state",
        "with overlap, and only then, a forward runs on another stream, behind that one",
        Order(
            SCHEDULER,
            "Scheduler.run_batch",
            (
                "if self.enable_overlap:",
                "with self.forward_stream_ctx:",
                "self.forward_stream.wait_stream(self.schedule_stream)",
                "self.model_worker.forward_batch_generation",
            ),
        ),
    ),
    row(
        "attention.backend engine.layers",
        "the model's layers find the KV pools at the backend in force",
        Order(
            CONTEXT,
            "get_token_to_kv_pool",
            ("get_attn_backend().token_to_kv_pool",),
        ),
    ),
    row(
        "engine.forward",
        "what a model takes in a prefill beside tokens, positions and batch",
        Signature(
            RUNNER,
            "ModelRunner._extend_forward_kwargs",
            ("forward_batch", "pp_proxy_tensors"),
        ),
    ),
    row(
        "engine.forward",
        "a prefill copies its batch into static buffers first",
        Calls(EAGER, "EagerRunner._execute_extend", "self.load_batch"),
    ),
    row(
        "engine.forward",
        "and then runs the model's own forward",
        Calls(EAGER, "EagerRunner._execute_extend", "model_runner.model.forward"),
    ),
    row(
        "engine.forward engine.shard_runner engine.model_check",
        "what is taken from the model runner",
        Attributes(
            RUNNER,
            "ModelRunner",
            ("attn_backend", "model", "device", "token_to_kv_pool", "dtype"),
        ),
    ),
    row(
        "engine.shard_runner engine.sampling engine.model_check",
        "the worker's model runner",
        Attributes("sglang.srt.managers.tp_worker", "TpModelWorker", ("model_runner",)),
    ),
    row(
        "attention.backend engine.layers",
        "layers ask the backend in force, with these arguments",
        Calls(RADIX, "RadixAttention.forward", "get_attn_backend().forward"),
    ),
    row(
        "attention.backend engine.layers",
        "the arguments' order",
        Order(
            RADIX,
            "RadixAttention.forward",
            ("get_attn_backend().forward(q, k, v, self, forward_batch, save_kv_cache,",),
        ),
    ),
    row(
        "attention.backend attention.layer_check attention.families.types "
        "attention.families.claims attention.families.grouped attention.families.window "
        "attention.families.latent engine.call_keywords",
        "what is read of an attention layer",
        Attributes(
            RADIX,
            "RadixAttention",
            (
                "layer_id",
                "tp_q_head_num",
                "tp_k_head_num",
                "tp_v_head_num",
                "qk_head_dim",
                "v_head_dim",
                "scaling",
                "logit_cap",
                "sliding_window_size",
                "is_cross_attention",
                "attn_type",
                "use_irope",
                "xai_temperature_len",
                "pos_encoding_mode",
            ),
        ),
    ),
    row(
        "attention.layer_check",
        "causal attention of a decoder",
        Fields(RADIX, "AttentionType", ("DECODER",)),
    ),
    row(
        "attention.backend parallel.rebalancer",
        "one layer's keys and values by slot",
        Attributes(POOL, "MHATokenToKVPool", ("get_key_buffer", "get_value_buffer")),
    ),
    row(
        "engine.model_check",
        "the format that KV is kept in",
        Attributes(POOL, "KVCache", ("dtype",)),
    ),
    row(
        "engine.model_check",
        "the layout that KV is kept in",
        Attributes(POOL, "MHATokenToKVPool", ("kv_cache_layout",)),
    ),
    row(
        "engine.scheduler engine.model_check",
        "the configuration is there before the weights are loaded",
        Order(
            "sglang.srt.managers.scheduler",
            "Scheduler.__init__",
            ("self.init_model_config()", "self.init_model_worker("),
        ),
    ),
    row(
        "engine.model_check",
        "a backend for prefill and one for decode",
        Attributes(
            "sglang.srt.layers.attention.hybrid_attn_backend",
            "HybridAttnBackend",
            ("prefill_backend", "decode_backend"),
        ),
    ),
    row(
        "engine.model_check",
        "backends that were read, as they are registered",
        Order(
            "sglang.srt.layers.attention.attention_registry",
            "",
            (
                "FlashInferAttnBackend(",
                "TritonAttnBackend(",
                "TorchNativeAttnBackend(",
                "TorchFlexAttnBackend(",
                "FlashAttentionBackend(",
                "TRTLLMHAAttnBackend(",
                "IntelAMXAttnBackend(",
            ),
        ),
    ),
    row(
        "attention.backend",
        "stores a shard's KV",
        Signature(
            POOL, "MHATokenToKVPool.set_kv_buffer", ("layer", "loc_info", "cache_k", "cache_v")
        ),
    ),
    row("attention.backend platforms.sinks", "where KV goes", Names(POOL, ("KVWriteLoc",))),
    row(
        "engine.slot_table",
        "slots of whole pages, None when too few are free",
        Signature(f"{ALLOCATOR}.paged", "PagedTokenToKVPoolAllocator.alloc", ("need_size",)),
    ),
    row(
        "engine.slot_table",
        "slots, None when too few are free",
        Signature(f"{ALLOCATOR}.token", "TokenToKVPoolAllocator.alloc", ("need_size",)),
    ),
    row(
        "engine.slot_table",
        "slots go back",
        Signature(f"{ALLOCATOR}.paged", "PagedTokenToKVPoolAllocator.free", ("free_index",)),
    ),
    row(
        "engine.slot_table engine.chunk_engine engine.scheduler engine.assembly",
        "what is read of an allocator",
        Attributes(
            f"{ALLOCATOR}.base",
            "BaseTokenToKVPoolAllocator",
            ("page_size", "device", "available_size"),
        ),
    ),
    row(
        "engine.forward",
        "slot 0 is nobody's: padding rows write there",
        Order(
            f"{ALLOCATOR}.token",
            "TokenToKVPoolAllocator.clear",
            ("torch.arange(1, self.size + 1",),
        ),
    ),
    row(
        "engine.forward",
        "page 0 is nobody's: padding rows write there",
        Order(
            f"{ALLOCATOR}.paged",
            "PagedTokenToKVPoolAllocator.clear",
            ("torch.arange(1, self.num_pages + 1",),
        ),
    ),
    row(
        "engine.model_check engine.scheduler engine.assembly engine.activations",
        "what is asked of the model",
        Attributes(
            CONFIG,
            "ModelConfig",
            (
                "is_multimodal",
                "is_generation",
                "attention_arch",
                "is_encoder_decoder",
                "is_hybrid_swa",
                "attention_chunk_size",
                "num_hidden_layers",
                "hf_config",
                "hf_text_config",
                "hidden_size",
                "context_len",
                "vocab_size",
                "dtype",
            ),
        ),
    ),
    row("engine.model_check", "plain attention", Fields(CONFIG, "AttentionArch", ("MHA",))),
    row(
        "engine.prompt_logprobs engine.sampling",
        "what is read of the logits output",
        Fields(
            "sglang.srt.layers.logits_processor",
            "LogitsProcessorOutput",
            (
                "next_token_logits",
                "input_token_logprobs",
                "input_top_logprobs_val",
                "input_top_logprobs_idx",
                "input_token_ids_logprobs_val",
                "input_token_ids_logprobs_idx",
            ),
        ),
    ),
    row(
        "engine.plain_model engine.shard_runner",
        "a layer is a module that can be found by its class",
        Base(RADIX, "RadixAttention", "nn.Module"),
    ),
)
