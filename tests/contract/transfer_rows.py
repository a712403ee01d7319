"""What many holders, and the pool's face towards decode, rely on in SGLang's NIXL transfer."""

from __future__ import annotations

from tests.contract.needs import (
    Attributes,
    Base,
    Calls,
    Fields,
    Keys,
    Order,
    Sends,
    Signature,
    Value,
)
from tests.contract.row import row

NIXL = "sglang.srt.disaggregation.nixl.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
BASE = "sglang.srt.disaggregation.base.conn"
MANAGER = "NixlKVManager"

ROWS = (
    # -- prefill: what a holder calls -----------------------------------------------------------
    row(
        "transfer.nixl",
        "pages to decode, with a notification",
        Signature(
            NIXL,
            f"{MANAGER}.send_kvcache",
            (
                "peer_name",
                "prefill_kv_indices",
                "dst_kv_ptrs",
                "dst_kv_indices",
                "dst_gpu_id",
                "notif",
            ),
            ("dst_mem_kind",),
        ),
    ),
    row(
        "transfer.nixl",
        "pages to decode with another tensor-parallel size",
        Signature(
            NIXL,
            f"{MANAGER}.send_kvcache_slice",
            ("peer_name", "prefill_kv_indices", "dst_kv_indices", "notif"),
        ),
    ),
    row(
        "transfer.nixl",
        "the metadata buffer",
        Signature(
            NIXL,
            f"{MANAGER}.send_aux",
            ("peer_name", "prefill_aux_index", "dst_aux_ptrs", "dst_aux_index", "notif"),
        ),
    ),
    row(
        "transfer.nixl",
        "waits for what was posted before an error",
        Signature(NIXL, f"{MANAGER}._await_handles", ("handles",), ("failure_seen",)),
    ),
    row(
        "transfer.nixl",
        "our numbers in stock's notifications",
        Order(
            NIXL,
            f"{MANAGER}.transfer_worker",
            (
                "f'{req.room}_kv_{kv_chunk.chunk_id}",
                "f'{req.room}_aux'",
                "f'_nokv_{self.transfer_source_rank}_{kv_chunk.chunk_id}'",
            ),
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
        Attributes(NIXL, MANAGER, ("agent", "transfer_source_rank", "src_mem_kind")),
    ),
    row(
        "transfer.manager engine.writes engine.scheduler",
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
        "transfer.nixl pool.dialects",
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
                "dst_kv_ptrs",
                "dst_aux_ptrs",
                "gpu_id",
                "decode_tp_size",
                "dst_homogeneous_mem_kind",
            ),
        ),
    ),
    row(
        "transfer.manager",
        "a one-instance request's sender, told where decode looks for it",
        Order(
            COMMON,
            "CommonKVSender.__init__",
            ("get_parallel().dp_size > 1 and (not req_has_disagg_prefill_dp_rank)",),
        ),
    ),
    row(
        "pool.outbox",
        "naming a prefill rank keeps the sender from announcing its own",
        Order(
            "sglang.srt.disaggregation.prefill",
            "PrefillBootstrapQueue",
            ("req_has_disagg_prefill_dp_rank=req.disagg_prefill_dp_rank is not None",),
        ),
    ),
    row(
        "engine.chunk_engine pool.lifecycle",
        "a room that decode gave up stays failed for a sender made later",
        Order(
            COMMON,
            "CommonKVManager.update_status",
            ("if current == KVPoll.Failed:",),
        ),
    ),
    # -- decode: stock, and what it makes of it -------------------------------------------------
    row(
        "transfer.nixl engine.layout",
        "decode counts numbers as a set, and the one marked last says how many",
        Order(
            NIXL,
            f"{MANAGER}._track_kv_arrival",
            (
                "received_kvs_per_pp[pp_rank].add(chunk_id)",
                "if is_last_chunk:",
                "expected_kvs_per_pp[pp_rank] = chunk_id + 1",
            ),
        ),
    ),
    row(
        "transfer.nixl engine.layout",
        "with metadata alone the number is how many came before",
        Order(
            NIXL,
            f"{MANAGER}._handle_aux_notification",
            (
                "self.transfer_statuses[room].received_aux = True",
                "components[2] == 'nokv'",
                "pp_rank = int(components[3])",
                "expected = int(components[4])",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "the parts of a notification, and that nobody asks who sent it",
        Order(
            NIXL,
            f"{MANAGER}.update_transfer_status",
            (
                "for peer_name, messages in notif_map.items():",
                "components = msg.decode('ascii').split('_', 8)",
                "room = int(components[0])",
                "chunk_id = int(components[2])",
                "is_last_chunk = bool(int(components[3]))",
                "pp_rank = int(components[4])",
            ),
        ),
    ),
    row(
        "transfer.nixl",
        "done: metadata there, and as many numbers as expected",
        Order(
            NIXL,
            "TransferStatus.is_done",
            ("self.received_aux", "len(self.received_kvs_per_pp[pp_rank]) != expected"),
        ),
    ),
    row(
        "pool.dialects transfer.nixl",
        "decode names its pages in these frames",
        Sends(
            NIXL,
            "NixlKVReceiver.send_metadata",
            (
                "GUARD",
                "str(self.bootstrap_room).encode('ascii')",
                "self.kv_mgr.local_ip.encode('ascii')",
                "str(self.kv_mgr.rank_port).encode('ascii')",
                "self.kv_mgr.agent.name.encode('ascii')",
                "kv_indices.tobytes() if not is_dummy else b''",
                "str(aux_index).encode('ascii')",
                "str(self.required_dst_info_num).encode('ascii')",
                "packed_state_indices",
                "str(decode_prefix_len or 0).encode('ascii')",
                "str(int(is_dummy)).encode('ascii')",
            ),
        ),
    ),
    row(
        "pool.dialects",
        "decode registers in these frames",
        Sends(
            NIXL,
            "NixlKVReceiver._register_kv_args",
            (
                "GUARD",
                "'None'.encode('ascii')",
                "self.kv_mgr.local_ip.encode('ascii')",
                "str(self.kv_mgr.rank_port).encode('ascii')",
                "self.kv_mgr.agent.name.encode('ascii')",
                "self.kv_mgr.agent.get_agent_metadata()",
            ),
        ),
    ),
    row(
        "pool.contact",
        "decode gives a room up in these frames",
        Sends(
            COMMON,
            "CommonKVReceiver._send_abort_notification",
            (
                "b'ABORT'",
                "str(self.bootstrap_room).encode('ascii')",
                "self.kv_mgr.local_ip.encode('ascii')",
                "str(self.kv_mgr.rank_port).encode('ascii')",
            ),
        ),
    ),
    row(
        "pool.dialects",
        "the first frame of registrations and pages",
        Value(NIXL, "GUARD", "'NixlMsgGuard'.encode('ascii')"),
    ),
    row(
        "pool.dialects",
        "the first frame of a room's status, and that its reason may follow",
        Value(NIXL, f"{MANAGER}.kv_status_msg_tag", "b'KV_STATUS'"),
    ),
    row(
        "pool.dialects",
        "the reason that decode gives its client",
        Value(NIXL, f"{MANAGER}.kv_status_msg_carries_reason", "True"),
    ),
    row(
        "pool.contact",
        "a room's status: room, status, rank, reason",
        Order(
            COMMON,
            "CommonKVManager.parse_kv_status_message",
            (
                "msg[0] != self.kv_status_msg_tag",
                "msg = msg[1:]",
                "bootstrap_room = int(msg[0].decode('ascii'))",
                "status = int(msg[1].decode('ascii'))",
                "prefill_rank = int(msg[2].decode('ascii'))",
                "msg[3].decode('utf-8', errors='replace')",
            ),
        ),
    ),
    row(
        "pool.lifecycle pool.rooms",
        "decode drops a status of a room that it does not know (yet)",
        Order(
            COMMON,
            "CommonKVManager.apply_prefill_status",
            ("if bootstrap_room not in self.request_status:", "status == KVPoll.Failed"),
        ),
    ),
    row(
        "pool.dialects",
        "decode's listener takes acknowledgements of aborts by room and rank",
        Order(
            NIXL,
            f"{MANAGER}._start_decode_listener_thread",
            (
                "msg[0] == b'ABORT_ACK'",
                "self.note_abort_ack(int(msg[1].decode('ascii')), int(msg[2].decode('ascii')))",
                "self.parse_kv_status_message(msg)",
            ),
        ),
    ),
    row(
        "pool.lifecycle",
        "decode keeps an aborted room's pages until every rank has acknowledged",
        Order(
            COMMON,
            "CommonKVManager.is_abort_release_safe",
            (">= required_acks",),
        ),
    ),
    row(
        "pool.lifecycle",
        "a one-instance request's own sender acknowledges once its writes are over",
        Order(
            NIXL,
            f"{MANAGER}._handle_abort_notification",
            (
                "self.update_status(room_to_be_aborted, KVPoll.Failed)",
                "self.register_deferred_ack_target",
                "self._maybe_ack_drained_abort(room_to_be_aborted)",
                "self._send_abort_ack(decode_ip, decode_port, room_to_be_aborted)",
            ),
        ),
    ),
    row(
        "pool.contact",
        "states of a transfer",
        Fields(BASE, "KVPoll", ("Failed", "WaitingForInput", "Success")),
    ),
    row(
        "pool.startup pool.contact",
        "what a prefill rank registers",
        Keys(
            COMMON,
            "CommonKVManager.register_to_bootstrap",
            (
                "attn_tp_size",
                "attn_tp_rank",
                "attn_cp_size",
                "attn_cp_rank",
                "attn_dp_size",
                "attn_dp_rank",
                "pp_size",
                "pp_rank",
                "system_dp_size",
                "system_dp_rank",
                "rank_ip",
                "rank_port",
                "page_size",
                "kv_cache_dtype",
                "load_balance_method",
                "prefill_http_port",
            ),
        ),
    ),
    row(
        "pool.startup pool.contact",
        "the pool registers as one replica, so decode asks for nobody's rank",
        Order(
            COMMON,
            "CommonKVBootstrapServer._handle_route_put",
            (
                "self.dp_size = attn_dp_size if system_dp_size == 1 else system_dp_size",
                "dp_group = attn_dp_rank",
                "PrefillRankInfo(rank_ip=rank_ip, rank_port=rank_port)",
            ),
        ),
    ),
    row(
        "pool.startup",
        "where ranks register",
        Order(
            COMMON,
            "CommonKVManager.register_to_bootstrap",
            ("f'{bootstrap_na.to_url()}/route'",),
        ),
    ),
    row(
        "transfer.nixl hooks",
        "prefill's and decode's manager share the base whose bookkeeping is used",
        Base(NIXL, MANAGER, "CommonKVManager"),
    ),
)
