"""Writes of one holder over Mooncake: SGLang's own calls, down to the native engine's."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.disaggregation.mooncake import conn

from sglang_cdsp.transfer.chunk_write import ChunkWrite
from sglang_cdsp.transfer.failures import TransferFailed
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

    _on_device = False

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
        self.kv_args = SimpleNamespace(
            page_size=1,
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
def manager(monkeypatch: pytest.MonkeyPatch) -> FakePoolManager:
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
    return manager


def pages(*numbers: int) -> bytes:
    return np.array(numbers, np.int32).tobytes()


def write(
    manager: FakePoolManager, source: list[int], places: list[int], *, last: bool = False
) -> ChunkWrite:
    posted = manager.open_write(
        ROOM, np.array(source, np.int32), np.array(places, np.int64), 0, last=last
    )
    posted.computed(aux_index=3 if last else None)
    return posted


def settle(posted: ChunkWrite) -> None:
    deadline = time.monotonic() + 10
    while not posted.poll():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_pages_go_to_their_places(manager: FakePoolManager) -> None:
    settle(write(manager, [5, 6, 9], [2, 3, 0]))
    assert manager.native.written == [
        (SESSION, source + 5 * ITEM, decode + 20 * ITEM, 2 * ITEM)
        if block == 0
        else (SESSION, source + 9 * ITEM, decode + 10 * ITEM, ITEM)
        for source, decode in ((KV, DECODE_KV), (2 * KV, 2 * DECODE_KV))
        for block in (0, 1)
    ]


@pytest.mark.parametrize("source", [[], [5]])
def test_the_last_write_carries_the_metadata(manager: FakePoolManager, source: list[int]) -> None:
    settle(write(manager, source, [0] * len(source), last=True))
    aux = (SESSION, AUX + 3 * AUX_ITEM, DECODE_AUX + 4 * AUX_ITEM, AUX_ITEM)
    assert aux in manager.native.written
    assert len(manager.native.written) == 1 + 2 * len(source)


def test_a_write_is_settled_when_all_its_parts_are(manager: FakePoolManager) -> None:
    manager.native.free.clear()
    shard = write(manager, [5], [3], last=True)
    assert not shard.poll()
    manager.native.free.set()
    settle(shard)
    assert len(manager.native.written) == 3
    assert shard.poll(), "asking again is harmless"


def test_a_failure_is_told_and_its_session_is_dead(manager: FakePoolManager) -> None:
    manager.native.failing = True
    shard = write(manager, [5], [3])
    with pytest.raises(TransferFailed, match=f"room {ROOM}"):
        settle(shard)
    assert shard.uncertain, "a socket's buffer may hold bytes of it"
    assert manager.failed_sessions == {SESSION}
    manager.native.failing = False
    manager.native.written.clear()
    with pytest.raises(TransferFailed, match=f"room {ROOM}"):
        settle(again := write(manager, [5], [3], last=True))
    assert manager.native.written == [], "nothing is sent to a dead session"
    assert not again.uncertain


@pytest.mark.parametrize(("mine", "theirs", "rank"), [(1, 2, 0), (1, 2, 1), (2, 1, 1)])
def test_another_tensor_parallel_size_takes_slices_of_heads(
    manager: FakePoolManager, mine: int, theirs: int, rank: int
) -> None:
    """The same blocks as SGLang's own call; two heads of eight bytes, two tokens a page."""
    heads, head, page = 2, 8, 2
    args, peer = manager.kv_args, manager.decode_kv_args_table[SESSION]
    manager.attn_tp_size, args.page_size = mine, page
    args.engine_rank, args.total_kv_head_num = rank if mine == 2 else 0, heads
    args.kv_item_lens = [heads // mine * head * page] * 2
    peer.dst_attn_tp_size, peer.dst_tp_rank = theirs, rank if theirs == 2 else 0
    peer.dst_kv_item_len = heads // theirs * head * page
    settle(write(manager, [5, 6, 9], [2, 3, 0]))
    ours, manager.native.written = manager.native.written, []
    with ThreadPoolExecutor(1) as executor:
        manager.send_kvcache_slice(
            SESSION,
            np.array([5, 6, 9], np.int32),
            peer.dst_kv_ptrs,
            np.array([20, 21, 10], np.int32),
            peer.dst_tp_rank,
            theirs,
            peer.dst_kv_item_len,
            executor,
        )
    assert ours == manager.native.written
    assert len(ours) == 2 * 3 * page


def test_layers_leave_one_by_one(manager: FakePoolManager) -> None:
    manager.kv_args.kv_data_ptrs = [KV, 2 * KV, 3 * KV, 4 * KV]
    manager.kv_args.kv_item_lens, manager.kv_args.prefill_end_layer = [ITEM] * 4, 2
    peer = manager.decode_kv_args_table[SESSION]
    peer.dst_kv_ptrs = [DECODE_KV + at for at in manager.kv_args.kv_data_ptrs]
    posted = manager.open_write(
        ROOM, np.array([5], np.int32), np.array([0], np.int64), 0, last=False
    )
    for layer in (1, 0):
        posted.layer_stored(layer)
    posted.computed(aux_index=None)
    settle(posted)
    # Two threads post: which layer comes first is theirs to say.
    assert sorted(manager.native.written) == [
        (SESSION, at + 5 * ITEM, DECODE_KV + at + 10 * ITEM, ITEM)
        for at in manager.kv_args.kv_data_ptrs
    ]


def test_dummies_get_nothing(manager: FakePoolManager) -> None:
    manager.transfer_infos[ROOM][SESSION].is_dummy = True
    settle(write(manager, [5], [3], last=True))
    assert manager.native.written == []


def test_a_room_is_known_once_its_session_has_registered(manager: FakePoolManager) -> None:
    assert manager.knows_room(ROOM)
    del manager.decode_kv_args_table[SESSION]
    assert not manager.knows_room(ROOM)


def test_a_one_instance_requests_sender_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else SGLang 0.5.23 pins memory and records a CUDA event for its page numbers."""
    monkeypatch.setattr(conn.MooncakeKVSender, "supports_host_tensor_indices", True, raising=False)
    keep_page_numbers_on_the_host()
    assert conn.MooncakeKVSender.supports_host_tensor_indices is False
