"""A pool member's KV manager over a fake NIXL agent, and stock decode sides to read it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
from sglang.srt.disaggregation.nixl import conn
from sglang.srt.disaggregation.nixl.conn import NixlKVManager, TransferInfo

from sglang_cdsp.releases import nixl_writes_notify
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
        if self.states[handle] == "GONE":
            raise RuntimeError("the partner is gone")
        return self.states[handle]

    def release_xfer_handle(self, handle: int) -> None:
        if self.states[handle] == "GONE":
            raise RuntimeError("the partner is gone")
        assert handle not in self.released, "a handle is released twice"
        assert self.states[handle] in ("DONE", "ERR"), "a handle in flight is released"
        self.released.append(handle)

    def end_all(self, state: str = "DONE") -> None:
        """Every transfer in flight ends."""
        self.states = {h: state if s == "PROC" else s for h, s in self.states.items()}


class FakePoolManager(NixlPoolManager):
    """``NixlPoolManager`` without sockets; ``sent`` keeps what stock's send methods were given.

    ``notify``: SGLang's calls take notifications, whatever the installed release does.
    """

    writes_notify = False

    def __init__(
        self, *, page_size: int = 1, tp_size: int = 1, rank: int = 0, notify: bool = True
    ) -> None:
        self.writes_notify = notify
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

    def _sent(self, how: str, call: Any, given: tuple[Any, ...], **fields: Any) -> int:
        if self.breaks_at == how:
            raise RuntimeError("no such memory")
        if self.writes_notify == nixl_writes_notify():
            inspect.signature(call).bind(self, *given, **fields.pop("keywords", {}))
        fields.pop("keywords", None)
        self.sent.append(
            (how, {**fields, "note": "".join(given[-1:] if self.writes_notify else ())})
        )
        return self.agent.post()

    def send_kvcache(self, *given: Any, **kinds: Any) -> int:
        to, source, _, target = given[:4]
        pages = list(zip(source.tolist(), target.tolist(), strict=True))
        call = NixlKVManager.send_kvcache
        return self._sent("kv", call, given, to=to, pages=pages, keywords=kinds, **kinds)

    def send_kvcache_slice(self, *given: Any) -> int:
        return self._sent("slice", NixlKVManager.send_kvcache_slice, given, to=given[0])

    def send_aux(self, *given: Any) -> int:
        to, source, _, place = given[:4]
        return self._sent("aux", NixlKVManager.send_aux, given, to=to, source=source, place=place)

    def notes(self) -> list[str]:
        """What decode's agents will read, in order of posting; "" for writes without."""
        return [fields["note"] for _, fields in self.sent]


class CountingDecode(NixlKVManager):
    """Decode's bookkeeping of arrivals, all stock, over notes handed in by the test.

    Only for releases whose NIXL writes notify: ``releases.nixl_writes_notify``.
    """

    def __init__(self) -> None:
        self.enable_staging = False
        self._staging_handler = None
        self.transfer_statuses: dict[int, Any] = defaultdict(conn.TransferStatus)
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
