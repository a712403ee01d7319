"""Whether prefill hears of a request that decode refused: stock's messages over real sockets."""

import itertools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sglang.srt.disaggregation import decode
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common import conn
from sglang.srt.disaggregation.mooncake.conn import MooncakeKVManager
from sglang.srt.disaggregation.nixl.conn import NixlKVManager
from sglang.srt.disaggregation.utils import (
    FAKE_BOOTSTRAP_HOST,
    DisaggregationMode,
    TransferBackend,
)

from tests.patches.probes.peers import (
    HOST,
    await_true,
    bootstrap_server,
    kv_args,
    parallel,
    surroundings,
)

# Mori is not installed, and SGLang's module imports it at once.
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in ("mori.cpp", "mori.io")}):
    from sglang.srt.disaggregation.mori.conn import MoriKVManager

# Each backend's manager, and what starts the thread that hears decode's messages.
BACKENDS = {
    "nixl": (NixlKVManager, "_start_bootstrap_thread"),
    "mooncake": (MooncakeKVManager, "start_prefill_thread"),
    "mori": (MoriKVManager, "_start_bootstrap_thread"),
}
CAPACITY = 64
STATUSES = {KVPoll.Failed: "failed", KVPoll.Bootstrapping: "waits"}
ROOMS = itertools.count(1)


class Sender(conn.CommonKVSender):
    """The common sender, without a transfer engine."""

    def poll(self) -> Any:
        return self.kv_mgr.check_status(self.bootstrap_room)

    def failure_exception(self) -> None: ...


class Receiver(conn.CommonKVReceiver):
    """The common receiver, without a transfer engine."""

    def poll(self) -> Any:
        return self.kv_mgr.check_status(self.bootstrap_room)

    def failure_exception(self) -> None: ...


class Queue(decode.DecodePreallocQueue):
    """Decode's queue as far as requests come in."""

    def __init__(self, manager: Any) -> None:
        self.kv_manager = manager
        self.transfer_backend = TransferBackend.NIXL
        self.queue: list[Any] = []
        self.pending_reqs: list[Any] = []
        self.retracted_queue: list[Any] = []
        self.scheduler = mock.MagicMock()
        self.scheduler.retire_unadmitted_request = lambda req: None
        self.token_to_kv_pool_allocator = None

    def _check_if_req_exceed_kv_capacity(self, req: Any) -> bool:
        return len(req.origin_input_ids) > CAPACITY


def run() -> dict[str, Any]:
    """What becomes of the request at prefill, by backend and situation; entries left behind."""
    with (
        bootstrap_server() as port,
        surroundings(port, parallel),
        mock.patch.multiple(
            decode,
            get_kv_class=lambda backend, wanted: Receiver,
            dsv41_dspark_needs_rebootstrap=lambda _: False,
        ),
    ):
        found: dict[str, Any] = {}
        for name in BACKENDS:
            # Its registration replaces the one of the backend before.
            prefill = _prefill(name)
            queue = Queue(_manager(conn.CommonKVManager, DisaggregationMode.DECODE))
            found[name] = _situations(prefill, queue, f"{HOST}:{port}")
        return found


def _situations(prefill: Any, queue: Queue, address: str) -> dict[str, Any]:
    host, port = address.split(":")

    def sender(room: int) -> Sender:
        return Sender(prefill, address, room, [0], 0)

    def abort(room: int) -> None:
        _abort(queue.kv_manager, address, room)

    def refuse(room: int | None, way: str = "", **fields: Any) -> None:
        where = {"bootstrap_host": host, "bootstrap_port": int(port)}
        queue.add(_request(room, **{**where, **fields}), **({way: True} if way else {}))

    def settle() -> None:
        """All that decode has said so far is heard: messages keep their order."""
        mark = sender(next(ROOMS))
        abort(mark.bootstrap_room)
        assert await_true(lambda: mark.poll() == KVPoll.Failed)

    def waiting(**fields: Any) -> str:
        """Prefill has the request before decode refuses it."""
        waits = sender(next(ROOMS))
        refuse(waits.bootstrap_room, **fields)
        settle()
        return STATUSES[waits.poll()]

    def in_use(room: int) -> None:
        """Another request of decode has the room."""
        taken = Receiver(queue.kv_manager, address, room)
        refuse(room)
        assert taken.poll() == KVPoll.Bootstrapping
        taken.clear()

    def early(act: Callable[[int], None], timeout_s: float = 300) -> str:
        """Decode acts before prefill has the request."""
        room = next(ROOMS)
        with mock.patch.object(prefill, "bootstrap_timeout", timeout_s):
            act(room)
            settle()
        return STATUSES[sender(room).poll()]

    found: dict[str, Any] = {
        "too long": waiting(),
        "rejected": waiting(origin_input_ids=[0], to_finish=decode.FINISH_ABORT("no")),
        "too long, early": early(refuse),
        "aborted, early": early(abort),
        "long ago": early(refuse, timeout_s=0),
        "retracted": waiting(way="is_retracted"),
        "bootstraps again": waiting(way="is_rebootstrap"),
        "room in use": early(in_use),
        "fake": waiting(bootstrap_host=FAKE_BOOTSTRAP_HOST),
    }
    refuse(None)
    kept = queue.kv_manager
    tables = (
        kept.request_status,
        kept.required_prefill_response_num_table,
        kept.addr_to_rooms_tracker[address],
        kept.failure_records,
        queue.queue,
        queue.pending_reqs,
        getattr(prefill, "_early_refusals", ()),
    )
    return {**found, "kept": sum(map(len, tables))}


def _abort(manager: Any, address: str, room: int) -> None:
    """An ordinary abort, of a request that decode had taken."""
    assert manager.try_ensure_parallel_info(address)
    receiver = Receiver(manager, address, room)
    receiver.init(0)
    receiver.abort()
    receiver.clear()
    manager.failure_records.pop(room)


def _prefill(name: str) -> Any:
    """A backend's manager without its engine, which hears what decode says."""
    cls, listen = BACKENDS[name]
    manager = _manager(cls, DisaggregationMode.PREFILL)
    getattr(manager, listen)()
    return manager


def _manager(base: Any, mode: DisaggregationMode) -> Any:
    manager = object.__new__(base)
    manager._stopped = False
    manager._worker_threads = []
    manager._staging_outstanding = {}
    manager.transfer_lock = mock.MagicMock()
    said = SimpleNamespace(enable_pd_role_switch=False)
    conn.CommonKVManager.__init__(manager, kv_args(), mode, said)
    return manager


def _request(room: int | None, **fields: Any) -> Any:
    request = {
        "rid": f"in-{room}",
        "bootstrap_room": room,
        "origin_input_ids": [0] * (CAPACITY + 1),
        "output_ids": [],
        "disagg_prefill_dp_rank": None,
        "finished_reason": None,
        "to_finish": None,
        "is_retracted": False,
        "metadata_buffer_index": -1,
        "kv": SimpleNamespace(holds_kv=False, holds_mamba=False, retraction_backup=None),
    }
    return SimpleNamespace(**{**request, **fields})
