"""A pool member's KV manager over a fake NIXL agent, and a stock decode side to read it."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
from sglang.srt.disaggregation.nixl.conn import NixlKVManager, TransferInfo, TransferStatus

from sglang_cdsp.transfer.nixl import NixlPoolManager

ROOM = 7


class FakeAgent:
    """Transfer handles are numbers; their states are set by the test."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.released: list[int] = []

    def post(self) -> int:
        """A new transfer."""
        handle = len(self.states) + 1
        self.states[handle] = "PROC"
        return handle

    def check_xfer_state(self, handle: int) -> str:
        return self.states[handle]

    def release_xfer_handle(self, handle: int) -> None:
        assert handle not in self.released, "a handle is released twice"
        assert self.states[handle] in ("DONE", "ERR"), "a handle in flight is released"
        self.released.append(handle)

    def end_all(self, state: str = "DONE") -> None:
        """Every transfer in flight ends."""
        self.states = {h: state if s == "PROC" else s for h, s in self.states.items()}


class FakePoolManager(NixlPoolManager):
    """``NixlPoolManager`` without sockets; ``sent`` keeps what stock's send methods were given."""

    def __init__(self, *, page_size: int = 1, tp_size: int = 1, rank: int = 0) -> None:
        self.agent = FakeAgent()
        self.transfer_infos: dict[int, dict[str, Any]] = {}
        self.decode_kv_args_table: dict[str, Any] = {}
        self.req_to_decode_prefix_len: dict[int, int | None] = {}
        self.request_status: dict[int, Any] = {}
        self.failure_records: dict[int, str] = {}
        self.transfer_source_rank = rank
        self.attn_tp_size = tp_size
        self.kv_args = SimpleNamespace(page_size=page_size)
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.breaks_at: str | None = None

    def peer(self, name: str, tp_size: int = 1) -> None:
        """A decode agent registers."""
        self.decode_kv_args_table[name] = SimpleNamespace(
            decode_tp_size=tp_size,
            dst_kv_ptrs=[1, 2],
            dst_aux_ptrs=[3],
            gpu_id=0,
            dst_homogeneous_mem_kind="DRAM",
        )

    def pages(
        self,
        name: str,
        pages: list[int],
        *,
        required: int = 1,
        prefix: int = 0,
        dummy: bool = False,
    ) -> None:
        """A decode agent names the room's pages."""
        info = TransferInfo(
            ROOM, "host", 1, name, np.array(pages, np.int32), 4, required, [], prefix, dummy
        )
        self.transfer_infos.setdefault(ROOM, {})[name] = info
        self.req_to_decode_prefix_len[ROOM] = prefix

    def _sent(self, how: str, **fields: Any) -> int:
        if self.breaks_at == how:
            raise RuntimeError("no such memory")
        self.sent.append((how, fields))
        return self.agent.post()

    def send_kvcache(
        self,
        peer_name: str,
        prefill_kv_indices: Any,
        dst_kv_ptrs: list[int],
        dst_kv_indices: Any,
        dst_gpu_id: int,
        notif: str,
        **kinds: Any,
    ) -> int:
        pages = list(zip(prefill_kv_indices.tolist(), dst_kv_indices.tolist(), strict=True))
        return self._sent("kv", to=peer_name, pages=pages, note=notif, **kinds)

    def send_kvcache_slice(self, peer: str, pages: Any, dst_pages: Any, note: str) -> int:
        return self._sent("slice", to=peer, note=note)

    def send_aux(
        self, peer_name: str, index: int, dst_ptrs: list[int], dst_index: int, notif: str
    ) -> int:
        return self._sent("aux", to=peer_name, source=index, place=dst_index, note=notif)

    def notes(self) -> list[str]:
        """What decode's agents will read, in order of posting."""
        return [fields["note"] for _, fields in self.sent]


class StockDecode(NixlKVManager):
    """Decode's bookkeeping of arrivals, all stock, over notes handed in by the test."""

    def __init__(self) -> None:
        self.enable_staging = False
        self._staging_handler = None
        self.transfer_statuses: dict[int, TransferStatus] = defaultdict(TransferStatus)
        self.required_prefill_response_num_table = {ROOM: 1}
        self.agent = self
        self._waiting: list[str] = []

    def get_new_notifs(self) -> dict[str, list[bytes]]:
        notes, self._waiting = self._waiting, []
        return {"somebody": [note.encode() for note in notes]}

    def done_after(self, note: str) -> bool:
        """Whether decode takes the KV as complete once this note has come, too."""
        self._waiting.append(note)
        self.update_transfer_status()
        return bool(self.check_transfer_done(ROOM))
