"""What the pool's face towards decode relies on in SGLang's Mooncake transfer."""

from __future__ import annotations

from tests.contract.changed import Changed
from tests.contract.needs import Order, Sends, Value
from tests.contract.row import row

MOONCAKE = "sglang.srt.disaggregation.mooncake.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
MANAGER = "MooncakeKVManager"


def registration(manager: str, session: str) -> tuple[str, ...]:
    """A decode agent's registration; ``manager`` and ``session`` are decode's."""
    return (
        "'None'.encode('ascii')",
        f"{manager}.local_ip.encode('ascii')",
        f"str({manager}.rank_port).encode('ascii')",
        f"{session}.encode('ascii')",
        "packed_kv_data_ptrs",
        "packed_aux_data_ptrs",
        "packed_state_data_ptrs",
    )


def pages(request: str, manager: str, session: str) -> tuple[str, ...]:
    """A room's pages; ``request`` stands before the room's fields."""
    return (
        f"str({request}bootstrap_room).encode('ascii')",
        *registration(manager, session)[1:4],
        "kv_indices.tobytes() if not is_dummy else b''",
        "str(aux_index).encode('ascii') if not is_dummy else b''",
        "pack_int_lists(state_indices, 'i') if not is_dummy and state_indices else b''",
        f"str({request}required_dst_info_num).encode('ascii')",
        "str(decode_prefix_len or 0).encode('ascii')",
    )


ROWS = (
    row(
        "controller.decode.wire transfer.mooncake",
        "decode names its pages in these frames",
        Changed(
            Sends(
                MOONCAKE,
                "MooncakeKVReceiver.send_metadata",
                pages("self.", "self.kv_mgr", "self.session_id"),
            ),
            Sends(
                MOONCAKE,
                f"{MANAGER}.build_receiver_metadata_message",
                pages("", "self", "self.get_session_id()"),
            ),
            "nothing: decode's manager writes the same frames, its receiver sends them",
        ),
    ),
    row(
        "controller.decode.wire",
        "decode registers in these frames, the 7th names what it has beside KV pages",
        Changed(
            Sends(
                MOONCAKE,
                "MooncakeKVReceiver._register_kv_args",
                registration("self.kv_mgr", "self.session_id"),
            ),
            Sends(
                MOONCAKE,
                f"{MANAGER}.build_receiver_registration_message",
                registration("self", "session_id"),
            ),
            "nothing: decode's manager writes the same frames, its receiver sends them",
        ),
    ),
    row(
        "controller.decode.wire",
        "no first frame before a room's status",
        Value(COMMON, "CommonKVManager.kv_status_msg_tag", "None"),
    ),
    row(
        "controller.decode.wire controller.lifecycle",
        "decode waits for as many ranks' words as it expects",
        Changed(
            Order(
                COMMON,
                "CommonKVManager.apply_prefill_status",
                (
                    "self.prefill_response_tracker[bootstrap_room].add(prefill_rank)",
                    "len(self.prefill_response_tracker[bootstrap_room]) < expected_response_num",
                    "self.update_status(bootstrap_room, KVPoll.Success)",
                ),
            ),
            Order(
                COMMON,
                "CommonKVManager.apply_prefill_status",
                (
                    "completed_ranks = self.prefill_response_tracker.get(bootstrap_room)",
                    "completed_ranks.add(prefill_rank)",
                    "len(completed_ranks) < expected_response_num",
                    "self.update_status(bootstrap_room, KVPoll.Success)",
                ),
            ),
            "nothing: the ranks that are done are looked up first",
        ),
    ),
    row(
        "controller.decode.wire",
        "a prefill rank's number is its tensor-parallel rank",
        Order(
            COMMON,
            "CommonKVManager._prefill_unique_rank",
            ("self.attn_tp_rank * (self.pp_size * self.attn_cp_size)",),
        ),
    ),
    row(
        "controller.decode.wire",
        "decode's listener takes acknowledgements of aborts, and statuses",
        Changed(
            Order(
                MOONCAKE,
                f"{MANAGER}.start_decode_thread",
                (
                    "msg[0] == b'ABORT_ACK'",
                    "self.note_abort_ack(ack_aborted_room, int(msg[2].decode('ascii')))",
                    "self.parse_kv_status_message(msg)",
                ),
            ),
            Order(
                MOONCAKE,
                f"{MANAGER}.start_decode_thread",
                ("self.handle_abort_ack_message(msg)", "self.parse_kv_status_message(msg)"),
            ),
            "the acknowledgement repeats the abort's generation (`controller.decode.wire`)",
            "aborts_have_generations",
        ),
    ),
    row(
        "controller.lifecycle",
        "a one-instance request's own sender acknowledges once its writes are over",
        Changed(
            Order(
                MOONCAKE,
                f"{MANAGER}.start_prefill_thread",
                (
                    "self.update_status(room_to_be_aborted, KVPoll.Failed)",
                    "self.register_deferred_ack_target(",
                    "self._maybe_ack_drained_abort(room_to_be_aborted)",
                ),
            ),
            Order(
                MOONCAKE,
                f"{MANAGER}._handle_deferred_abort_notification",
                (
                    "self.update_status(room, KVPoll.Failed)",
                    "self.register_deferred_ack_target(",
                    "self._maybe_ack_drained_abort(room)",
                ),
            ),
            "nothing: it has moved; decode's frames are passed on whole",
        ),
    ),
)
