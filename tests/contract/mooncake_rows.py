"""What holders of KV rely on in SGLang's Mooncake transfer."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import (
    Attributes,
    Base,
    Calls,
    Fields,
    Names,
    Order,
    Signature,
)
from tests.contract.row import row

MOONCAKE = "sglang.srt.disaggregation.mooncake.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
ENGINE = "sglang.srt.distributed.device_communicators.mooncake_transfer_engine"
MANAGER = "MooncakeKVManager"


ROWS = (
    row(
        "transfer.mooncake",
        "blocks (address here, address there, bytes) to decode; returns when they have arrived",
        Signature(
            MOONCAKE, f"{MANAGER}._transfer_data", ("mooncake_session_id", "transfer_blocks")
        ),
    ),
    row(
        "transfer.mooncake",
        "refuses a decode server whose KV is laid out in another way",
        Signature(
            MOONCAKE,
            f"{MANAGER}._validate_envelope_kv_layout",
            ("dst_kv_ptrs", "dst_kv_item_len", "dst_attn_tp_size"),
        ),
    ),
    row(
        "transfer.mooncake",
        "which of decode's buffers is which of ours",
        Signature(
            "sglang.srt.disaggregation.utils",
            "build_transfer_entry_pairs",
            ("src_layer_ids", "dst_layer_ids", "n_src", "n_dst"),
            ("allow_positional_fallback",),
        ),
    ),
    row(
        "transfer.mooncake",
        "the same where no buffer has a layer's number",
        Signature(
            COMMON, "CommonKVManager.get_mha_kv_ptrs_with_pp", ("src_kv_ptrs", "dst_kv_ptrs")
        ),
    ),
    row(
        "transfer.mooncake",
        "the same where a layer has one buffer",
        Signature(
            COMMON, "CommonKVManager.get_mla_kv_ptrs_with_pp", ("src_kv_ptrs", "dst_kv_ptrs")
        ),
    ),
    row(
        "transfer.mooncake",
        "the heads that a rank sends to one of another tensor-parallel size",
        Signature(
            "sglang.srt.disaggregation.common.staging_buffer",
            "compute_head_slice_params",
            (
                "src_attn_tp_size",
                "dst_attn_tp_size",
                "src_tp_rank",
                "dst_tp_rank",
                "total_kv_heads",
            ),
        ),
    ),
    row(
        "transfer.mooncake",
        "where those heads are",
        Order(
            MOONCAKE,
            f"{MANAGER}.send_kvcache_slice",
            (
                "dst_heads_per_rank = max(1, total_kv_heads // dst_attn_tp_size)",
                "dst_kv_item_len // page_size // dst_heads_per_rank",
                "src_head_slice_offset = src_head_start_offset * bytes_per_head_slice_to_send",
                "dst_head_slice_offset = dst_head_start_offset * bytes_per_head_slice_to_send",
            ),
        ),
    ),
    row(
        "transfer.mooncake",
        "the metadata buffer",
        Signature(MOONCAKE, f"{MANAGER}.send_aux", ("req", "prefill_aux_index", "dst_aux_ptrs")),
    ),
    row(
        "transfer.mooncake transfer.installation",
        "metadata goes as KV does, unless one of these is set",
        Order(
            MOONCAKE,
            f"{MANAGER}.send_aux",
            (
                "self.custom_mem_pool_type == 'NVLINK'",
                "envs.SGLANG_MOONCAKE_SEND_AUX_TCP.get()",
                "return self._transfer_data(",
            ),
        ),
    ),
    row(
        "transfer.installation",
        "how those two are read",
        Names(
            "sglang.srt.disaggregation.mooncake.utils", ("check_mooncake_custom_mem_pool_enabled",)
        ),
    ),
    row(
        "transfer.installation",
        "how those two are read",
        Fields(
            "sglang.srt.environ",
            "Envs",
            ("SGLANG_MOONCAKE_SEND_AUX_TCP", "SGLANG_MOONCAKE_CUSTOM_MEM_POOL"),
        ),
    ),
    row(
        "transfer.mooncake_engine",
        "what is done in another way: a write that returns 0 when it has arrived",
        Signature(
            ENGINE,
            "MooncakeTransferEngine.batch_transfer_sync",
            ("session_id", "buffers", "peer_buffer_addresses", "lengths"),
        ),
    ),
    row(
        "transfer.mooncake_engine",
        "the native engine is behind the wrapper",
        Calls(
            ENGINE,
            "MooncakeTransferEngine.batch_transfer_sync",
            "self.engine.batch_transfer_sync_write",
        ),
    ),
    row(
        "transfer.mooncake_engine",
        "all writes of pages and metadata go this way",
        Calls(MOONCAKE, f"{MANAGER}._transfer_data", "self.engine.batch_transfer_sync"),
    ),
    row(
        "transfer.mooncake",
        "where a manager gets its engine",
        Order(
            MOONCAKE, f"{MANAGER}.init_engine", ("self.engine = get_mooncake_transfer_engine()",)
        ),
    ),
    row(
        "transfer.installation",
        "the module of the native engine",
        Order(
            ENGINE,
            "MooncakeTransferEngine.__init__",
            ("from mooncake.engine import TransferEngine",),
        ),
    ),
    row(
        "transfer.mooncake",
        "what a holder reads of its manager",
        Attributes(
            MOONCAKE,
            MANAGER,
            ("session_lock", "session_failures", "failed_sessions"),
        ),
    ),
    row(
        "transfer.mooncake",
        "a failed session is dead until it registers again",
        Changed(
            Order(
                MOONCAKE,
                f"{MANAGER}.start_prefill_thread",
                ("self.failed_sessions.remove(mooncake_session_id)",),
            ),
            Order(
                MOONCAKE,
                f"{MANAGER}._unblacklist_session",
                ("self.failed_sessions.discard(session_id)",),
            ),
            "nothing: it has moved; the probes find sessions that we add",
        ),
    ),
    row(
        "transfer.manager transfer.mooncake",
        "what the manager's thread makes of messages that we pass on",
        Order(
            MOONCAKE,
            f"{MANAGER}.start_prefill_thread",
            (
                "recv = self._make_worker_recv(self.server_socket)",
                "mooncake_session_id = waiting_req_bytes[3].decode('ascii')",
                "room == 'None'",
                "KVArgsRegisterInfo.from_zmq(waiting_req_bytes)",
                "TransferInfo.from_zmq(waiting_req_bytes)",
                "self.req_to_decode_prefix_len[room]",
            ),
        ),
    ),
    row(
        "transfer.mooncake transfer.manager",
        "decode's pages of one room",
        Fields(
            MOONCAKE,
            "TransferInfo",
            (
                "room",
                "mooncake_session_id",
                "dst_kv_indices",
                "dst_aux_index",
                "required_dst_info_num",
                "decode_prefix_len",
                "is_dummy",
            ),
        ),
    ),
    row(
        "transfer.mooncake",
        "a decode agent's memory",
        Fields(
            MOONCAKE,
            "KVArgsRegisterInfo",
            (
                "dst_kv_ptrs",
                "dst_aux_ptrs",
                "dst_tp_rank",
                "dst_attn_tp_size",
                "dst_kv_item_len",
                "dst_kv_layer_ids",
            ),
        ),
    ),
    row(
        "transfer.mooncake",
        "where a one-instance request's sender needs CUDA, unless told otherwise",
        Changed(
            Not(Attributes(MOONCAKE, "MooncakeKVSender", ("supports_host_tensor_indices",))),
            Order(
                "sglang.srt.disaggregation.prefill",
                "SchedulerDisaggregationPrefillMixin._send_kv_chunk",
                (
                    "getattr(sender, 'supports_host_tensor_indices', False)",
                    "pin_memory=True",
                    "torch.cuda.Event()",
                    "kv_to_page_indices(kv_indices, page_size)",
                ),
            ),
            "the sender is told that it cannot, on machines without CUDA (`transfer.mooncake`)",
        ),
    ),
    row(
        "transfer.mooncake transfer.kv_class",
        "prefill's and decode's manager share the base whose bookkeeping is used",
        Base(MOONCAKE, MANAGER, "CommonKVManager"),
    ),
)
