"""What the newest SGLang release changes of what is relied on, and what each change asks of us.

The texts are what ``tests.contract.drift`` prints with that release's sources on the path.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTROLLER = "sglang.srt.managers.data_parallel_controller"
NIXL = "sglang.srt.disaggregation.nixl.conn"
MOONCAKE = "sglang.srt.disaggregation.mooncake.conn"
COMMON = "sglang.srt.disaggregation.common.conn"

NO_NOTES = (
    "NIXL writes carry no notification; home tells decode by a status message once every holder's "
    "writes are over (`transfer.nixl`; `awaits_success` in `controller.decode.wire`)"
)
BASE = (
    "messages to decode are built in the common base: `controller.decode.wire` must parse those "
    "frames"
)
GENERATION = (
    "an abort has a generation, which its acknowledgement must carry (`controller.decode.endpoint`)"
)
PRELAUNCHED = "`controller.process` must take this argument and pass it on"
NOTHING = "nothing: "


@dataclass(frozen=True)
class Difference:
    """One expected difference.

    Attributes:
        problem: module and what is wrong there.
        asks: what a port to that release has to do.
    """

    problem: str
    asks: str


def gone(name: str, asks: str, module: str = NIXL) -> Difference:
    """A part of a module that is no longer there."""
    part = name.split(".")[0] if name.startswith("TransferStatus") else name.split(".")[-1]
    return Difference(f"{module}: {module} has no {name}: {part} is not there", asks)


def unsaid(place: str, text: str, asks: str) -> Difference:
    """A function of the Mooncake module no longer says something."""
    return Difference(f"{MOONCAKE}: {place} does not say {text!r}", asks)


EXPECTED: dict[str, tuple[Difference, ...]] = {
    "0.5.23": (
        Difference(
            "sglang.srt.disaggregation.prefill: SchedulerDisaggregationPrefillMixin."
            "get_next_disagg_prefill_batch_to_run takes more than we pass on: "
            "should_retry_storage_prefetch",
            NOTHING + "`engine.scheduler` passes on what it gets",
        ),
        Difference(
            "sglang.srt.managers.scheduler: Scheduler.handle_generate_request does not call "
            "self._add_request_to_queue",
            NOTHING + "its body moved to `_handle_generate_request`",
        ),
        Difference(
            "sglang.srt.managers.scheduler: Scheduler.handle_generate_request does not say "
            "'self.max_req_input_len'",
            NOTHING + "its body moved to `_handle_generate_request`",
        ),
        Difference(
            f"{CONTROLLER}: DataParallelController.__init__ takes more than we pass on: "
            "prelaunched_schedulers",
            PRELAUNCHED,
        ),
        Difference(
            f"{CONTROLLER}: run_data_parallel_controller_process takes more than we pass on: "
            "prelaunched_schedulers",
            PRELAUNCHED,
        ),
        Difference(
            f"{CONTROLLER}: run_data_parallel_controller_process does not say 'controller = "
            "DataParallelController(server_args, port_args, run_scheduler_process_func)'",
            PRELAUNCHED,
        ),
        Difference(
            f"{NIXL}: NixlKVManager.send_kvcache takes (peer_name, prefill_kv_indices, "
            "dst_kv_ptrs, dst_kv_indices, dst_gpu_id, dst_mem_kind), not (peer_name, "
            "prefill_kv_indices, dst_kv_ptrs, dst_kv_indices, dst_gpu_id, notif)",
            NO_NOTES,
        ),
        Difference(
            f"{NIXL}: NixlKVManager.send_kvcache_slice takes (peer_name, prefill_kv_indices, "
            "dst_kv_indices), not (peer_name, prefill_kv_indices, dst_kv_indices, notif)",
            NO_NOTES,
        ),
        Difference(
            f"{NIXL}: NixlKVManager.send_aux takes (peer_name, prefill_aux_index, dst_aux_ptrs, "
            "dst_aux_index), not (peer_name, prefill_aux_index, dst_aux_ptrs, dst_aux_index, "
            "notif)",
            NO_NOTES,
        ),
        Difference(
            f"{NIXL}: NixlKVManager.transfer_worker does not say "
            '"f\'{req.room}_kv_{kv_chunk.chunk_id}"',
            NO_NOTES,
        ),
        Difference(f"{NIXL}: NixlKVManager lacks transfer_source_rank", NO_NOTES),
        Difference(
            f"{COMMON}: CommonKVSender.__init__ does not say 'get_parallel().dp_size > 1 and (not "
            "req_has_disagg_prefill_dp_rank)'",
            NOTHING + "`dp_size` became `num_dp_ranks` there",
        ),
        gone("NixlKVManager._track_kv_arrival", NO_NOTES),
        gone("NixlKVManager._handle_aux_notification", NO_NOTES),
        gone("NixlKVManager.update_transfer_status", NO_NOTES),
        gone("TransferStatus.is_done", NO_NOTES),
        gone("NixlKVReceiver.send_metadata", BASE),
        gone("NixlKVReceiver._register_kv_args", BASE),
        Difference(
            f"{COMMON}: CommonKVReceiver._send_abort_notification sends no message of frames "
            "b'ABORT', str(self.bootstrap_room).encode('ascii'), "
            "self.kv_mgr.local_ip.encode('ascii'), str(self.kv_mgr.rank_port).encode('ascii')",
            GENERATION,
        ),
        Difference(
            f"{NIXL}: NixlKVManager._start_decode_listener_thread does not say "
            "\"msg[0] == b'ABORT_ACK'\"",
            GENERATION,
        ),
        Difference(
            f"{NIXL}: NixlKVManager._handle_abort_notification does not say "
            "'self.register_deferred_ack_target' after the rest",
            NOTHING + "moved to `_handle_deferred_abort_ack`",
        ),
        gone("MooncakeKVReceiver.send_metadata", BASE, MOONCAKE),
        gone("MooncakeKVReceiver._register_kv_args", BASE, MOONCAKE),
        unsaid(
            "MooncakeKVManager.start_prefill_thread",
            "self.failed_sessions.remove(mooncake_session_id)",
            NOTHING + "moved to `_unblacklist_session`",
        ),
        unsaid(
            "MooncakeKVManager.start_prefill_thread",
            "self.update_status(room_to_be_aborted, KVPoll.Failed)",
            NOTHING + "moved to `_handle_deferred_abort_notification`",
        ),
        unsaid("MooncakeKVManager.start_decode_thread", "msg[0] == b'ABORT_ACK'", GENERATION),
        Difference(
            f"{COMMON}: CommonKVManager.apply_prefill_status does not say "
            "'self.prefill_response_tracker[bootstrap_room].add(prefill_rank)'",
            NOTHING + "the ranks that are done are looked up first",
        ),
        Difference(
            "sglang.srt.platforms.interface: SRTPlatform lacks get_mha_kv_pool_cls, "
            "get_mla_kv_pool_cls",
            "answer `get_kv_pool_cls` (`platforms.cpu`); the old names still work, with a warning",
        ),
    ),
}
"""By release; the pinned one differs in nothing."""
