"""What the pool knows of decode's KV cache relies on: how stock decode takes a prompt in."""

from __future__ import annotations

from tests.contract.changed import Changed
from tests.contract.needs import Fields, Names, Order, Sends
from tests.contract.row import row

NIXL = "sglang.srt.disaggregation.nixl.conn"
DECODE = "sglang.srt.disaggregation.decode"
QUEUE = "DecodePreallocQueue"


def registration(manager: str) -> tuple[str, ...]:
    """A decode agent's registration; ``manager`` is what its manager is called there."""
    return (
        "GUARD",
        "'None'.encode('ascii')",
        f"{manager}.local_ip.encode('ascii')",
        f"str({manager}.rank_port).encode('ascii')",
        f"{manager}.agent.name.encode('ascii')",
        f"{manager}.agent.get_agent_metadata()",
        "packed_kv_data_ptrs",
        "packed_aux_data_ptrs",
        "packed_state_data_ptrs",
        f"str({manager}.kv_args.gpu_id).encode('ascii')",
        f"str({manager}.attn_tp_size).encode('ascii')",
        f"str({manager}.kv_args.engine_rank).encode('ascii')",
        "str(dst_kv_item_len).encode('ascii')",
        "packed_state_item_lens",
        "packed_state_dim_per_tensor",
        "packed_staging_base_ptr",
        "staging_total_size_str",
        "str(dst_num_slots).encode('ascii')",
    )


ROWS = (
    row(
        "controller.decode.wire",
        "lists of addresses in a frame",
        Names("sglang.srt.disaggregation.common.utils", ("unpack_int_lists",)),
    ),
    row(
        "controller.decode.wire",
        "decode registers in these frames; the 9th names what it has beside KV pages, the 18th is "
        "its number of pages",
        Changed(
            Sends(NIXL, "NixlKVReceiver._register_kv_args", registration("self.kv_mgr")),
            Sends(NIXL, "NixlKVManager.build_receiver_registration_message", registration("self")),
            "nothing: decode's manager writes the same frames, its receiver sends them",
        ),
    ),
    row(
        "controller.decode.servers",
        "pages of the whole buffer, the padding page included; 0 where there is none",
        Changed(
            Order(
                NIXL,
                "NixlKVReceiver._register_kv_args",
                ("kv_args.kv_data_lens[0] // dst_kv_item_len", "dst_num_slots = 0"),
            ),
            Order(
                NIXL,
                "NixlKVManager.build_receiver_registration_message",
                ("dst_num_slots = num_kv_slots(", "dst_num_slots = 0"),
            ),
            "nothing: of all buffers the one with fewest pages counts",
        ),
    ),
    row(
        "controller.decode.servers",
        "decode takes a prompt in once its cache has room for it and the reserve",
        Order(
            DECODE,
            f"{QUEUE}._required_admission_tokens",
            ("allocated_tokens + self.num_reserved_decode_tokens",),
        ),
    ),
    row(
        "controller.decode.servers",
        "one that does not fit holds up everybody behind it",
        Order(
            DECODE,
            f"{QUEUE}.pop_preallocated",
            (
                "for i, decode_req in enumerate(self.queue):",
                "if not self._prealloc_reservation_fits(",
                "break",
            ),
        ),
    ),
    row(
        "controller.decode.servers",
        "SGLang's own prompt limit: seven tokens less than the KV cache holds",
        Order(
            "sglang.srt.managers.tp_worker",
            "TpModelWorker.get_worker_info",
            ("kv_capacity - 1", "max_req_input_len = max_req_len - 5"),
        ),
    ),
    row(
        "controller.decode.servers",
        "a prompt of that limit is refused, and decode makes no contact for it",
        Order(
            "sglang.srt.managers.utils",
            "validate_input_length",
            ("len(req.origin_input_ids) >= max_req_input_len",),
        ),
    ),
    row(
        "controller.decode.room_manager",
        "decode looks for failures of the rooms that it has named no pages for",
        Order(
            DECODE,
            f"{QUEUE}._update_handshake_waiters",
            ("poll == KVPoll.Failed", "decode_req.kv_receiver.failure_exception()"),
        ),
    ),
    row(
        "controller.controller",
        "the reserve that both servers should have",
        Fields(
            "sglang.srt.arg_groups.fields.disagg",
            "Disagg",
            ("num_reserved_decode_tokens",),
        ),
    ),
)
