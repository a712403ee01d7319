"""Writes of one holder over Mooncake: SGLang's own calls, down to the native engine's."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.disaggregation.mooncake import conn

from sglang_cdsp.transfer.manager import ShardWrite, TransferFailed
from sglang_cdsp.transfer.mooncake import MooncakePoolManager, keep_page_numbers_on_the_host
from sglang_cdsp.transfer.mooncake_engine import DONE, FAILED, PatientEngine

ROOM = 7
SESSION = "10.0.0.9:1234"
KV, AUX, ITEM, AUX_ITEM = 1000, 9000, 16, 8
DECODE_KV, DECODE_AUX = 50_000, 90_000


class FakeEngine:
    """Mooncake's engine: blocks end well unless ``failing``, once they are ``free`` to."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int, int, int]] = []
        self.failing = False
        self.free = threading.Event()
        self.free.set()

    def transfer_submit_write(self, session: str, source: int, place: int, length: int) -> int:
        self.written.append((session, source, place, length))
        return len(self.written)

    def transfer_check_status(self, batch: int) -> int:
        if not self.free.is_set():
            return 0
        return FAILED if self.failing else DONE


class FakePoolManager(MooncakePoolManager):
    """``MooncakePoolManager`` without sockets, over the fake engine."""

    def __init__(self) -> None:
        self.native = FakeEngine()
        self.engine = PatientEngine(SimpleNamespace(engine=self.native))
        self.transfer_infos: dict[int, dict[str, Any]] = {}
        self.failure_records: dict[int, str] = {}
        self.decode_kv_args_table: dict[str, Any] = {}
        self.req_to_decode_prefix_len: dict[int, int | None] = {}
        self.attn_tp_size, self.pp_size = 1, 1
        self.is_mla_backend = self.is_hybrid_mla_backend = self.enable_custom_mem_pool = False
        self.max_transfer_batch_indices = 0
        self.session_lock = threading.Lock()
        self.session_failures: defaultdict[str, int] = defaultdict(int)
        self.failed_sessions: set[str] = set()
        self.executors = [ThreadPoolExecutor(1)]
        self._writers = ThreadPoolExecutor(2)
        self.kv_args = SimpleNamespace(
            kv_data_ptrs=[KV, 2 * KV],  # one layer: K, V
            kv_item_lens=[ITEM, ITEM],
            kv_layer_ids=[],
            aux_data_ptrs=[AUX],
            aux_item_lens=[AUX_ITEM],
            prefill_start_layer=0,
            prefill_end_layer=1,
        )

    def _validate_envelope_kv_layout(self, *layout: Any) -> None:
        """Reads the server's arguments, which a test has not."""


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePoolManager]:
    memory = SimpleNamespace(enable_unified_memory=False)
    monkeypatch.setattr(conn, "get_memory", lambda: memory)
    manager = FakePoolManager()
    manager.decode_kv_args_table[SESSION] = SimpleNamespace(
        dst_kv_ptrs=[DECODE_KV, 2 * DECODE_KV],
        dst_aux_ptrs=[DECODE_AUX],
        dst_attn_tp_size=1,
        dst_tp_rank=0,
        dst_kv_item_len=ITEM,
        dst_kv_layer_ids=[],
    )
    frames = [str(ROOM), "10.0.0.9", "5001", SESSION, pages(10, 11, 20, 21), "4", b"", "1", "0"]
    info = conn.TransferInfo.from_zmq([f.encode() if isinstance(f, str) else f for f in frames])
    manager.transfer_infos[ROOM] = {SESSION: info}
    yield manager
    for pool in (*manager.executors, manager._writers):
        pool.shutdown()


def pages(*numbers: int) -> bytes:
    return np.array(numbers, np.int32).tobytes()


def write(
    manager: FakePoolManager, source: list[int], places: list[int], *, last: bool = False
) -> ShardWrite:
    return manager.write_shard(
        ROOM,
        np.array(source, np.int32),
        np.array(places, np.int64),
        0,
        last=last,
        aux_index=3 if last else None,
    )


def settle(manager: FakePoolManager, shard: ShardWrite) -> None:
    deadline = time.monotonic() + 10
    while not manager.settled(shard):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_pages_go_to_their_places(manager: FakePoolManager) -> None:
    settle(manager, write(manager, [5, 6, 9], [2, 3, 0]))
    assert manager.native.written == [
        (SESSION, source + 5 * ITEM, decode + 20 * ITEM, 2 * ITEM)
        if block == 0
        else (SESSION, source + 9 * ITEM, decode + 10 * ITEM, ITEM)
        for source, decode in ((KV, DECODE_KV), (2 * KV, 2 * DECODE_KV))
        for block in (0, 1)
    ]


@pytest.mark.parametrize("source", [[], [5]])
def test_the_last_write_carries_the_metadata(manager: FakePoolManager, source: list[int]) -> None:
    settle(manager, write(manager, source, [0] * len(source), last=True))
    aux = (SESSION, AUX + 3 * AUX_ITEM, DECODE_AUX + 4 * AUX_ITEM, AUX_ITEM)
    assert aux in manager.native.written
    assert len(manager.native.written) == 1 + 2 * len(source)


def test_a_write_is_settled_when_all_its_parts_are(manager: FakePoolManager) -> None:
    manager.native.free.clear()
    shard = write(manager, [5], [3], last=True)
    assert not manager.settled(shard)
    manager.native.free.set()
    settle(manager, shard)
    assert len(manager.native.written) == 3
    assert manager.settled(shard), "asking again is harmless"


def test_a_failure_is_told_and_its_session_is_dead(manager: FakePoolManager) -> None:
    manager.native.failing = True
    shard = write(manager, [5], [3])
    with pytest.raises(TransferFailed, match=f"room {ROOM}"):
        settle(manager, shard)
    assert manager.failed_sessions == {SESSION}
    manager.native.failing = False
    manager.native.written.clear()
    with pytest.raises(TransferFailed, match=f"room {ROOM}"):
        settle(manager, write(manager, [5], [3], last=True))
    assert manager.native.written == [], "nothing is sent to a dead session"


def test_dummies_get_nothing(manager: FakePoolManager) -> None:
    manager.transfer_infos[ROOM][SESSION].is_dummy = True
    assert manager.settled(write(manager, [5], [3], last=True))


def test_a_room_is_known_once_its_session_has_registered(manager: FakePoolManager) -> None:
    assert manager.knows_room(ROOM)
    del manager.decode_kv_args_table[SESSION]
    assert not manager.knows_room(ROOM)


def test_a_one_instance_requests_sender_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else SGLang 0.5.23 pins memory and records a CUDA event for its page numbers."""
    monkeypatch.setattr(conn.MooncakeKVSender, "supports_host_tensor_indices", True, raising=False)
    keep_page_numbers_on_the_host()
    assert conn.MooncakeKVSender.supports_host_tensor_indices is False
