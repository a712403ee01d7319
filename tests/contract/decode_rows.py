"""What the pool's face towards decode relies on: stock's messages over NIXL, and their meaning."""

from __future__ import annotations

from tests.contract.needs import Base, Fields, Keys, Order, Sends, Value
from tests.contract.row import row

NIXL = "sglang.srt.disaggregation.nixl.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
BASE = "sglang.srt.disaggregation.base.conn"
MANAGER = "NixlKVManager"

ROWS = (
    row(
        "transfer.nixl parallel.chunk_layout",
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
        "transfer.nixl parallel.chunk_layout",
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
        "controller.decode.wire transfer.nixl",
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
        "controller.decode.endpoint",
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
        "controller.decode.wire",
        "the first frame of registrations and pages",
        Value(NIXL, "GUARD", "'NixlMsgGuard'.encode('ascii')"),
    ),
    row(
        "controller.decode.wire",
        "the first frame of a room's status, and that its reason may follow",
        Value(NIXL, f"{MANAGER}.kv_status_msg_tag", "b'KV_STATUS'"),
    ),
    row(
        "controller.decode.wire",
        "the reason that decode gives its client",
        Value(NIXL, f"{MANAGER}.kv_status_msg_carries_reason", "True"),
    ),
    row(
        "controller.decode.endpoint",
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
        "controller.lifecycle controller.decode.rooms",
        "decode drops a status of a room that it does not know (yet)",
        Order(
            COMMON,
            "CommonKVManager.apply_prefill_status",
            ("if bootstrap_room not in self.request_status:", "status == KVPoll.Failed"),
        ),
    ),
    row(
        "controller.decode.wire",
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
        "controller.lifecycle",
        "decode keeps an aborted room's pages until every rank has acknowledged",
        Order(
            COMMON,
            "CommonKVManager.is_abort_release_safe",
            (">= required_acks",),
        ),
    ),
    row(
        "controller.lifecycle",
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
        "controller.decode.endpoint",
        "states of a transfer",
        Fields(BASE, "KVPoll", ("Failed", "WaitingForInput", "Success")),
    ),
    row(
        "controller.startup controller.decode.endpoint",
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
        "controller.startup controller.decode.endpoint",
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
        "controller.startup",
        "where ranks register",
        Order(
            COMMON,
            "CommonKVManager.register_to_bootstrap",
            ("f'{bootstrap_na.to_url()}/route'",),
        ),
    ),
    row(
        "transfer.nixl transfer.kv_class",
        "prefill's and decode's manager share the base whose bookkeeping is used",
        Base(NIXL, MANAGER, "CommonKVManager"),
    ),
)
