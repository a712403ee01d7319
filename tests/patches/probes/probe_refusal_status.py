"""With which status decode ends a request whose room prefill failed."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

from sglang.srt.disaggregation import decode
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.mooncake.conn import MooncakeKVManager, MooncakeKVReceiver
from sglang.srt.disaggregation.nixl.conn import NixlKVManager, NixlKVReceiver

ENGINES = {
    "nixl": (NixlKVManager, NixlKVReceiver),
    "mooncake": (MooncakeKVManager, MooncakeKVReceiver),
}
FRAMES: dict[str, list[bytes]] = {
    "no frame": [],
    "400": [b"400"],
    "503": [b"503"],
    "200": [b"200"],
    "no number": [b"\xff"],
}
ROOM, REASON = 7, "n=2 is refused"


def run() -> dict[str, Any]:
    """By engine and frame: statuses before and after decode named its pages; the reason is told."""
    return {
        engine: {name: _ends(*classes, frames) for name, frames in FRAMES.items()}
        for engine, classes in ENGINES.items()
    }


def _ends(manager_class: Any, receiver_class: Any, frames: list[bytes]) -> dict[str, Any]:
    reasons = []
    for end in (_end_before_pages, _end_after_pages):
        request = SimpleNamespace(rid="r", bootstrap_room=ROOM, return_logprob=False)
        end(request, _receiver(manager_class, receiver_class, frames))
        reasons.append(request.finished_reason)
    return {
        "ends": [int(reason.status_code) for reason in reasons],
        "reason": all(REASON in reason.message for reason in reasons),
    }


def _receiver(manager_class: Any, receiver_class: Any, frames: list[bytes]) -> Any:
    """A receiver whose manager heard from prefill that the room failed."""
    manager = object.__new__(manager_class)
    manager.request_status = {ROOM: KVPoll.WaitingForInput}
    manager.failure_records = {}
    manager.failure_lock = mock.MagicMock()
    manager.enable_deferred_decode_kv_release = False
    tag = [] if manager.kv_status_msg_tag is None else [manager.kv_status_msg_tag]
    said = [b"7", str(int(KVPoll.Failed)).encode(), b"0", REASON.encode(), *frames]
    room, status, rank, reason = manager.parse_kv_status_message([*tag, *said])
    manager.apply_prefill_status(
        bootstrap_room=room, status=status, prefill_rank=rank, failure_reason=reason
    )
    receiver = object.__new__(receiver_class)
    receiver.kv_mgr = manager
    receiver.bootstrap_room = ROOM
    receiver.conclude_state = None
    receiver.clear = lambda: None
    return receiver


def _end_before_pages(request: Any, receiver: Any) -> None:
    queue = object.__new__(decode.DecodePreallocQueue)
    queue.queue = [SimpleNamespace(req=request, kv_receiver=receiver)]
    queue.pp_size, queue.tp_rank, queue.gloo_group = 1, 0, None
    queue.scheduler = mock.MagicMock()
    with mock.patch.object(decode, "poll_and_all_reduce", return_value=[KVPoll.Failed]):
        queue._update_handshake_waiters()


def _end_after_pages(request: Any, receiver: Any) -> None:
    queue = mock.MagicMock()
    waits = mock.MagicMock(req=request, kv_receiver=receiver, hicache_restore_status=None)
    queue.queue, queue.tp_rank, queue.enable_staging = [waits], 0, False
    queue.enable_host_receive = queue.enable_deferred_kv_release = False
    queue.scheduler = mock.MagicMock(enable_decode_hicache=False, enable_hisparse=False)
    queue._poll_with_metadata_gate.return_value = [KVPoll.Failed]
    decode.DecodeTransferQueue.pop_transferred(queue)
