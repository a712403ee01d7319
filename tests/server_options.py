"""SGLang's options as a pool can serve with them."""

from __future__ import annotations

from typing import Any

GOOD: dict[str, Any] = {
    "disaggregation_mode": "prefill",
    "dp_size": 4,
    "speculative_algorithm": None,
    "pp_size": 1,
    "enable_dp_attention": False,
    "attn_cp_size": 1,
    "dcp_size": 1,
    "enable_lora": None,
    "lora_paths": None,
    "enable_multimodal": None,
    "enable_hierarchical_cache": False,
    "enable_pd_role_switch": False,
    "tokenizer_worker_num": 1,
    "nnodes": 1,
    "enable_mixed_chunk": False,
    "allow_auto_truncate": False,
    "enable_eplb": False,
    "expert_distribution_recorder_mode": None,
    "expert_balancedness_report_mode": "off",
    "enable_return_hidden_states": False,
    "return_hidden_states_mode": None,
    "enable_return_routed_experts": False,
    "enable_return_indexer_topk": False,
    "disaggregation_enable_kv_checksum": False,
}
# What SGLang 0.5.23 has besides; 0.5.21 does without.
NEWER: dict[str, Any] = {
    "attn_dp_size": 1,
    "disaggregation_decode_allocation_policy": "early",
    "enable_kv_cache_sharding": False,
    "enable_return_aux_hidden_states": False,
    "enable_watermark": False,
}

# What a pool's server needs besides that is not refused.
UNREFUSED: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "disaggregation_bootstrap_port": 0,
    "grpc_port": None,
    "page_size": None,
    "disaggregation_transfer_backend": "mooncake",
    "model_path": "some/model",
    "revision": None,
    "json_model_override_args": "{}",
}
