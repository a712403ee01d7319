"""What the pool's face towards decode relies on: stock's messages over NIXL, and their meaning."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import Attributes, Base, Fields, Keys, Order, Sends, Value
from tests.contract.row import row

NIXL = "sglang.srt.disaggregation.nixl.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
BASE = "sglang.srt.disaggregation.base.conn"
MANAGER = "NixlKVManager"

NO_NOTES = (
    "NIXL writes carry no notification; the controller sends a status once every holder's writes "
    "are over (`transfer.nixl`; `awaits_success` in `controller.decode.wire`)"
)
ACKNOWLEDGEMENT = (
    "room=int(msg[1].decode('ascii'))",
    "prefill_rank=int(msg[2].decode('ascii'))",
    "generation=int(msg[3].decode('ascii'))",
)


def pages(request: str, manager: str) -> tuple[str, ...]:
    """A room's pages; ``request`` stands before the room's fields, ``manager`` is decode's."""
    return (
        "GUARD",
        f"str({request}bootstrap_room).encode('ascii')",
        f"{manager}.local_ip.encode('ascii')",
        f"str({manager}.rank_port).encode('ascii')",
        f"{manager}.agent.name.encode('ascii')",
        "kv_indices.tobytes() if not is_dummy else b''",
        "str(aux_index).encode('ascii')",
        f"str({request}required_dst_info_num).encode('ascii')",
        "packed_state_indices",
        "str(decode_prefix_len or 0).encode('ascii')",
        "str(int(is_dummy)).encode('ascii')",
    )


ROWS = (
    row(
        "transfer.nixl parallel.chunk_layout",
        "decode counts numbers as a set, and the one marked last says how many",
        Changed(
            Order(
                NIXL,
                f"{MANAGER}._track_kv_arrival",
                (
                    "received_kvs_per_pp[pp_rank].add(chunk_id)",
                    "if is_last_chunk:",
                    "expected_kvs_per_pp[pp_rank] = chunk_id + 1",
                ),
            ),
            Not(Attributes(NIXL, MANAGER, ("_track_kv_arrival",))),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.nixl parallel.chunk_layout",
        "with metadata alone the number is how many came before",
        Changed(
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
            Not(Attributes(NIXL, MANAGER, ("_handle_aux_notification",))),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.nixl",
        "the parts of a notification, and that nobody asks who sent it",
        Changed(
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
            Order(
                NIXL,
                f"{MANAGER}._start_decode_listener_thread",
                (
                    "self.handle_abort_ack_message(msg)",
                    "self.parse_kv_status_message(msg)",
                    "self.apply_prefill_status(",
                ),
            ),
            NO_NOTES + ": it comes from the controller's socket, and nobody asks who sent it",
            "not nixl_writes_notify",
        ),
    ),
    row(
        "transfer.nixl",
        "done: metadata there, and as many numbers as expected; or as the statuses say",
        Changed(
            Order(
                NIXL,
                "TransferStatus.is_done",
                ("self.received_aux", "len(self.received_kvs_per_pp[pp_rank]) != expected"),
            ),
            Order(
                COMMON,
                "CommonKVReceiver._poll",
                (
                    "self.kv_mgr.check_status(self.bootstrap_room)",
                    "status in (KVPoll.Success, KVPoll.Failed)",
                    "self.conclude_state = status",
                ),
            ),
            NO_NOTES,
            "not nixl_writes_notify",
        ),
    ),
    row(
        "controller.decode.wire transfer.nixl",
        "decode names its pages in these frames",
        Changed(
            Sends(NIXL, "NixlKVReceiver.send_metadata", pages("self.", "self.kv_mgr")),
            Sends(NIXL, f"{MANAGER}.build_receiver_metadata_message", pages("", "self")),
            "nothing: decode's manager writes the same frames, its receiver sends them",
        ),
    ),
    row(
        "controller.decode.endpoint",
        "decode gives a room up in these frames",
        Changed(
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
            Order(
                COMMON,
                "AbortNotification.to_zmq",
                (
                    "frames = [ABORT_TAG, str(self.room).encode('ascii')]",
                    "[self.decode_ip.encode('ascii'), str(self.decode_port).encode('ascii')]",
                    "frames.append(str(self.generation).encode('ascii'))",
                ),
            ),
            "the abort's generation is read as well (`generations` in `controller.decode.wire`)",
            "aborts_have_generations",
        ),
    ),
    row(
        "controller.decode.wire releases",
        "which aborts decode waits to be acknowledged",
        Changed(
            Order(
                NIXL,
                f"{MANAGER}._handle_abort_notification",
                ("self.enable_deferred_decode_kv_release and decode_port is not None",),
            ),
            Order(
                COMMON,
                "AbortNotification.deferred_ack_target",
                ("if self.generation is None:", "return None", "return AckTarget("),
            ),
            "where aborts have generations, one without is not acknowledged "
            "(`controller.decode.wire`)",
            "aborts_have_generations",
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
        "controller.decode.wire",
        "a room's status: room, status, rank, reason; a further frame is not looked at",
        Order(
            COMMON,
            "CommonKVManager.parse_kv_status_message",
            (
                "msg[0] != self.kv_status_msg_tag",
                "msg = msg[1:]",
                "len(msg) < 3",
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
        Changed(
            Order(
                NIXL,
                f"{MANAGER}._start_decode_listener_thread",
                (
                    "msg[0] == b'ABORT_ACK'",
                    "self.note_abort_ack(int(msg[1].decode('ascii')), int(msg[2].decode('ascii')))",
                    "self.parse_kv_status_message(msg)",
                ),
            ),
            Order(COMMON, "AbortAck.from_zmq", ACKNOWLEDGEMENT),
            "the acknowledgement repeats the abort's generation (`controller.decode.wire`)",
            "aborts_have_generations",
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
        Changed(
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
            Order(
                NIXL,
                f"{MANAGER}._handle_deferred_abort_ack",
                (
                    "self.register_deferred_ack_target",
                    "self._maybe_ack_drained_abort(room_to_be_aborted)",
                ),
            ),
            "nothing: part of it has moved; decode's frames are passed on whole",
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
