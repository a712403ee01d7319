"""What a holder of KV relies on in SGLang's NIXL transfer."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.decode_rows import NO_NOTES
from tests.contract.needs import Attributes, Calls, Fields, Order, Signature
from tests.contract.row import row

NIXL = "sglang.srt.disaggregation.nixl.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
MANAGER = "NixlKVManager"

SEND_PAGES = ("peer_name", "prefill_kv_indices", "dst_kv_ptrs", "dst_kv_indices", "dst_gpu_id")
SEND_METADATA = ("peer_name", "prefill_aux_index", "dst_aux_ptrs", "dst_aux_index")

ROWS = (
    row(
        "transfer.nixl",
        "whether writes to decode carry a notification",
        Changed(
            Signature(NIXL, f"{MANAGER}.send_kvcache", (*SEND_PAGES, "notif"), ("dst_mem_kind",)),
            Signature(NIXL, f"{MANAGER}.send_kvcache", SEND_PAGES, ("dst_mem_kind",), exact=True),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.nixl",
        "pages of whole models to decode, out of lists prepared for each agent",
        Order(
            NIXL,
            f"{MANAGER}._send_kvcache_generic",
            (
                "peer_name in self.prep_handles",
                "src_prep = self.prep_handles['']",
                "dst_prep = self.prep_handles[peer_name]",
                "info.dst_num_slots if info.dst_num_slots is not None else self._num_slots_src",
                "repeat_indices_over_layers(prefill_data_indices, num_layers, self._num_slots_src)",
                "repeat_indices_over_layers(dst_data_indices, num_layers, num_slots_dst)",
                "make_prepped_xfer('WRITE', src_prep, src_indices, dst_prep, dst_indices",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "such a list has all of one buffer after all of another",
        Order(
            NIXL,
            "repeat_indices_over_layers",
            (
                "np.arange(num_layers, dtype=np.int32) * layer_length",
                "(offsets[:, None] + indices[None, :]).ravel()",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "pages to decode with another tensor-parallel size",
        Order(
            NIXL,
            f"{MANAGER}.send_kvcache_slice",
            (
                "src_handle, num_groups, num_ptr_pairs, num_slots_src = self.prep_handle_slice_src",
                "num_slots_dst, head_group_idx = self.prep_handles_slice_dst[peer_name]",
                "make_prepped_xfer('WRITE', src_handle, src_indices, dst_handle, dst_indices",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "where such a list has a token's group of heads",
        Order(
            NIXL,
            "expand_page_indices_for_slice",
            (
                "pair_stride = num_slots * page_size * num_groups",
                "page_indices[:, None] * (page_size * num_groups)",
                "token_offsets[None, :] * num_groups + head_group_idx",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "several threads may use the agent",
        Order(
            NIXL,
            f"{MANAGER}.__init__",
            ("sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT",),
        ),
    ),
    row(
        "transfer.nixl",
        "the metadata buffer",
        Changed(
            Signature(NIXL, f"{MANAGER}.send_aux", (*SEND_METADATA, "notif")),
            Signature(NIXL, f"{MANAGER}.send_aux", SEND_METADATA, exact=True),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.nixl",
        "our numbers in stock's notifications, or when stock tells decode",
        Changed(
            Order(
                NIXL,
                f"{MANAGER}.transfer_worker",
                (
                    "f'{req.room}_kv_{kv_chunk.chunk_id}",
                    "f'{req.room}_aux'",
                    "f'_nokv_{self.transfer_source_rank}_{kv_chunk.chunk_id}'",
                ),
            ),
            Order(
                NIXL,
                f"{MANAGER}.transfer_worker",
                (
                    "aux_xfer_handle = self.send_aux(",
                    "handles.append(aux_xfer_handle)",
                    "self._await_handles(handles, failure_seen=False)",
                    "self.conclude_transfer(bootstrap_room=room, status=KVPoll.Success)",
                ),
            ),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.nixl",
        "transfers are polled by their handle, in these states",
        Order(
            NIXL,
            f"{MANAGER}._await_handles",
            ("self.agent.check_xfer_state(handle)", "state == 'ERR'", "state != 'DONE'"),
        ),
    ),
    row(
        "transfer.nixl",
        "what a holder reads of its manager",
        Attributes(
            NIXL,
            MANAGER,
            (
                "agent",
                "prep_handles",
                "prep_handle_slice_src",
                "prep_handles_slice_dst",
                "_num_slots_src",
            ),
        ),
    ),
    row(
        "transfer.manager transfer.mooncake",
        "a rank's own KV buffers",
        Fields(
            "sglang.srt.disaggregation.base.conn",
            "KVArgs",
            (
                "engine_rank",
                "kv_data_ptrs",
                "kv_item_lens",
                "kv_layer_ids",
                "gpu_id",
                "kv_head_num",
                "total_kv_head_num",
                "page_size",
                "prefill_start_layer",
            ),
        ),
    ),
    row(
        "transfer.manager",
        "all K buffers come before all V buffers, unless each layer has one",
        Order(
            COMMON,
            "CommonKVManager.get_mha_kv_ptrs_with_pp",
            (
                "num_kv_layers = len(src_kv_ptrs) // 2",
                "src_k_ptrs = src_kv_ptrs[:num_kv_layers]",
                "src_v_ptrs = src_kv_ptrs[num_kv_layers:]",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "which prefill rank a write is said to come from",
        Changed(
            Attributes(NIXL, MANAGER, ("transfer_source_rank",)),
            Not(Attributes(NIXL, MANAGER, ("transfer_source_rank",))),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.manager engine.writes engine.assembly",
        "what a holder reads of its manager's base",
        Attributes(
            COMMON,
            "CommonKVManager",
            (
                "transfer_infos",
                "request_status",
                "req_to_decode_prefix_len",
                "failure_records",
                "kv_args",
                "attn_tp_size",
                "is_mla_backend",
                "is_hybrid_mla_backend",
                "local_ip",
                "rank_port",
                "kv_cache_dtype_str",
                "register_to_bootstrap",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "decode agents that registered",
        Attributes(NIXL, MANAGER, ("decode_kv_args_table", "_add_remote_peer")),
    ),
    row(
        "transfer.manager",
        "overridden: the pool controller registers for all",
        Signature(COMMON, "CommonKVManager.register_to_bootstrap", (), exact=True),
    ),
    row(
        "transfer.nixl",
        "the manager's thread reads what we pass on from its own socket",
        Calls(
            NIXL,
            f"{MANAGER}._start_bootstrap_thread",
            "self.server_socket.recv_multipart",
            in_loop=True,
        ),
    ),
    row(
        "transfer.nixl",
        "that thread is no daemon by itself, so a daemon starts it",
        Order(
            NIXL,
            f"{MANAGER}._start_bootstrap_thread",
            ("threading.Thread(target=bootstrap_thread_guarded).start()",),
        ),
    ),
    row(
        "transfer.nixl controller.decode.wire",
        "registrations and pages are told apart by the room",
        Order(
            NIXL,
            f"{MANAGER}._start_bootstrap_thread",
            (
                "self._handle_abort_notification(waiting_req_bytes)",
                "waiting_req_bytes[0] == GUARD",
                "room == 'None'",
                "KVArgsRegisterInfo.from_zmq(waiting_req_bytes)",
                "TransferInfo.from_zmq(waiting_req_bytes)",
                "self.req_to_decode_prefix_len[room]",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "decode's pages of one room",
        Fields(
            NIXL,
            "TransferInfo",
            (
                "room",
                "agent_name",
                "dst_kv_indices",
                "dst_aux_index",
                "required_dst_info_num",
                "decode_prefix_len",
                "is_dummy",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "a decode agent's memory",
        Fields(
            NIXL,
            "KVArgsRegisterInfo",
            (
                "agent_name",
                "dst_aux_ptrs",
                "dst_num_slots",
            ),
        ),
    ),
    row(
        "transfer.manager",
        "a one-instance request's sender, told where decode looks for it",
        Changed(
            Order(
                COMMON,
                "CommonKVSender.__init__",
                ("get_parallel().dp_size > 1 and (not req_has_disagg_prefill_dp_rank)",),
            ),
            Order(
                COMMON,
                "CommonKVSender.__init__",
                ("get_parallel().num_dp_ranks > 1 and (not req_has_disagg_prefill_dp_rank)",),
            ),
            "nothing: the number has another name there",
        ),
    ),
    row(
        "controller.dispatcher",
        "naming a prefill rank keeps the sender from announcing its own",
        Order(
            "sglang.srt.disaggregation.prefill",
            "PrefillBootstrapQueue",
            ("req_has_disagg_prefill_dp_rank=req.disagg_prefill_dp_rank is not None",),
        ),
    ),
    row(
        "engine.chunk_engine controller.lifecycle",
        "a room that decode gave up stays failed for a sender made later",
        Order(
            COMMON,
            "CommonKVManager.update_status",
            ("if current == KVPoll.Failed:",),
        ),
    ),
)
