"""A holder and a decode rank over real NIXL agents, with host memory that a test can read."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sglang.srt.disaggregation.nixl.conn import TransferInfo
from sglang.srt.disaggregation.utils import DisaggregationMode

from sglang_cdsp.transfer.chunk_write import ChunkWrite
from sglang_cdsp.transfer.nixl import NixlPoolManager
from sglang_cdsp.transfer.poster import PostingThreads
from sglang_cdsp.transfer.progress_thread import calm_progress_thread
from tests.engine.fake_transfer import ROOM

nixl = pytest.importorskip("nixl._api", reason="NIXL is the transfer engine that is tried here")

LAYERS, HEADS, HEAD_BYTES = 3, 4, 8
PAGES = 48
AUX = 16
ENOUGH_S = 30.0
Bytes = npt.NDArray[np.uint8]


class Pool:
    """KV buffers ``[2 * LAYERS, PAGES, page, heads, HEAD_BYTES]`` and metadata ``[2, AUX]``."""

    def __init__(self, memory: Bytes, page: int, tp_size: int) -> None:
        shape = (2 * LAYERS, PAGES, page, HEADS // tp_size, HEAD_BYTES)
        size = int(np.prod(shape))
        self.kv = memory[:size].reshape(shape)
        self.aux = memory[-2 * AUX :].reshape(2, AUX)
        self.ptrs = [int(buffer.ctypes.data) for buffer in self.kv]
        self.item_bytes = size // (2 * LAYERS * PAGES)


class Machine:
    """An agent with registered memory, made as SGLang makes its own."""

    def __init__(self, name: str) -> None:
        calm_progress_thread()
        config = nixl.nixl_agent_config(
            backends=["UCX"], sync_mode=nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        )
        self.name = name
        self.agent = nixl.nixl_agent(name, config)
        self.memory: Bytes = np.zeros(1 << 18, dtype=np.uint8)
        self.agent.register_memory([(self.memory.ctypes.data, self.memory.nbytes, 0, "")], "DRAM")


class RealManager(NixlPoolManager):
    """``NixlPoolManager`` without sockets over a real agent, its lists prepared by SGLang."""

    _on_device = False

    def __init__(
        self,
        here: Machine,
        there: Machine,
        *,
        page: int,
        tp_size: int = 1,
        rank: int = 0,
        decode_tp_size: int = 1,
        decode_rank: int = 0,
    ) -> None:
        self.agent = here.agent
        self.poster = PostingThreads()
        self.source = Pool(here.memory, page, tp_size)
        self.target = Pool(there.memory, page, decode_tp_size)
        self.transfer_infos: dict[int, dict[str, Any]] = {}
        self.failure_records: dict[int, str] = {}
        self.transfer_source_rank = 0
        self.attn_tp_size, self.pp_size = tp_size, 1
        self.is_mla_backend = self.is_hybrid_mla_backend = False
        self._use_strided_descs = True
        self.kv_args = SimpleNamespace(
            page_size=page,
            kv_data_ptrs=self.source.ptrs,
            kv_item_lens=[self.source.item_bytes] * 2 * LAYERS,
            kv_data_lens=[self.source.item_bytes * PAGES] * 2 * LAYERS,
            kv_layer_ids=[],
            prefill_start_layer=0,
            gpu_id=0,
            engine_rank=rank,
            kv_head_num=HEADS // tp_size,
            total_kv_head_num=HEADS,
            aux_data_ptrs=[self.source.aux.ctypes.data],
            aux_item_lens=[AUX],
        )
        self._num_slots_src = PAGES
        self.prep_handles: dict[str, Any] = {}
        self.prep_handle_slice_src = None
        self.prep_handles_slice_dst: dict[str, Any] = {}
        peer = SimpleNamespace(
            agent_name=there.name,
            decode_tp_size=decode_tp_size,
            decode_tp_rank=decode_rank,
            dst_kv_ptrs=self.target.ptrs,
            dst_kv_item_len=self.target.item_bytes,
            dst_num_slots=PAGES,
            dst_aux_ptrs=[self.target.aux.ctypes.data],
            gpu_id=0,
            agent_metadata=there.agent.get_agent_metadata(),
            dst_dcp_size=1,
            dst_dcp_rank=0,
        )
        self.disaggregation_mode = DisaggregationMode.PREFILL
        self.decode_kv_args_table = {there.name: peer}
        self._prepare_payload_xfer(peer)

    def _prepare_payload_xfer(self, peer_info: Any) -> None:
        """Prepare the lists in host memory, which stock does for devices only."""
        if self.attn_tp_size == peer_info.decode_tp_size:
            for name, ptrs in (("", self.source.ptrs), (peer_info.agent_name, self.target.ptrs)):
                self._init_equal_tp_prep_handle(name, ptrs, 0, mem_kind="DRAM")
        else:
            self._init_hetero_tp_prep_handle(peer_info.agent_name, peer_info, "DRAM", "DRAM")

    def _prepare_state_xfer(self, peer_info: Any) -> None:
        """There is no state."""

    def requires_dcp_relayout(self, *_: Any) -> bool:
        return False

    def check_peer_aux_buffer_count(self, *_: Any) -> None:
        """There is one."""

    def pages_at(self, there: Machine, pages: list[int]) -> None:
        """Decode names the room's pages; its metadata goes to the second place."""
        info = TransferInfo(
            ROOM, "host", 1, there.name, np.array(pages, np.int32), 1, 1, [], 0, False
        )
        self.transfer_infos[ROOM] = {there.name: info}


def drained(write: ChunkWrite) -> None:
    """Ask until a write has ended."""
    deadline_s = time.monotonic() + ENOUGH_S
    while not write.poll():
        if time.monotonic() > deadline_s:
            raise TimeoutError("a write to an agent in this process does not end")
        time.sleep(0.0002)
