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
from tests.transfer.fake_posters import InlinePoster

ROOM = 7
LAYERS = 2
SLOTS = 100_000  # pages of each buffer, here and at decode


class FakeAgent:
    """Transfer handles are numbers; their states are set by the test.

    Attributes:
        sent: what was posted, by kind, in order; of pages, which of which layer.
        notes: what decode's agents will read, in order.
        breaks_at: "make", "post" or "note": that call fails.
    """

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.released: list[int] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.notes: list[str] = []
        self.breaks_at = ""

    def _breaks(self, here: str) -> None:
        if self.breaks_at == here:
            raise RuntimeError("no such memory")

    def post(self) -> int:
        """A new transfer."""
        handle = len(self.states) + 1
        self.states[handle] = "PROC"
        return handle

    def check_remote_metadata(self, name: str) -> bool:
        """No connection ever breaks here."""
        return True

    def make_prepped_xfer(
        self,
        operation: str,
        here: tuple[str, str, int],
        source: Any,
        there: tuple[str, str, int],
        place: Any,
    ) -> int:
        """Lists are ``(how, agent, entries of a buffer)``."""
        self._breaks("make")
        assert operation == "WRITE"
        assert source.dtype == place.dtype == np.int32
        how, to, entries = there
        buffers = np.unique(source // here[2])
        assert buffers.tolist() == np.unique(place // entries).tolist()
        layer = int(buffers[0])
        assert buffers.tolist() == [layer, layer + LAYERS], "K and V of one layer"
        pairs = list(zip((source % here[2]).tolist(), (place % entries).tolist(), strict=True))
        keys, values = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        assert keys == values
        self.sent.append((how, {"to": to, "layer": layer, "pages": keys}))
        return self.post()

    def transfer(self, handle: int) -> str:
        if self.breaks_at == "post":
            self.states[handle] = "ERR"
        self._breaks("post")
        return self.states[handle]

    def send_notif(self, to: str, note: bytes) -> None:
        self._breaks("note")
        self.notes.append(note.decode())

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
    """``NixlPoolManager`` without sockets, over a fake agent.

    ``notify``: SGLang's calls take notifications, whatever the installed release does.
    """

    writes_notify = False
    _on_device = False

    def __init__(
        self, *, page_size: int = 1, tp_size: int = 1, rank: int = 0, notify: bool = True
    ) -> None:
        self.writes_notify = notify
        self.agent = FakeAgent()
        self.poster: Any = InlinePoster()
        self.transfer_infos: dict[int, dict[str, Any]] = {}
        self.decode_kv_args_table: dict[str, Any] = {}
        self.req_to_decode_prefix_len: dict[int, int | None] = {}
        self.request_status: dict[int, Any] = {}
        self.failure_records: dict[int, str] = {}
        self.transfer_source_rank = rank
        self.attn_tp_size = tp_size
        self.is_mla_backend = self.is_hybrid_mla_backend = False
        self.kv_args = SimpleNamespace(
            page_size=page_size,
            kv_data_ptrs=list(range(2 * LAYERS)),
            kv_layer_ids=[],
            prefill_start_layer=0,
        )
        self._num_slots_src = SLOTS
        self.prep_handles = {"": ("kv", "", SLOTS)}
        self.prep_handle_slice_src = (
            ("slice", "", 2 * page_size * SLOTS),
            2,
            2 * LAYERS,
            SLOTS,
        )
        self.prep_handles_slice_dst: dict[str, Any] = {}

    @property
    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        """What was posted, see ``FakeAgent``."""
        return self.agent.sent

    def peer(self, name: str, tp_size: int = 1, group: int = 0) -> None:
        """A decode agent registers; it takes the heads of ``group`` if its size is another."""
        self.decode_kv_args_table[name] = SimpleNamespace(dst_aux_ptrs=[3], dst_num_slots=2 * SLOTS)
        if tp_size == self.attn_tp_size:
            self.prep_handles[name] = ("kv", name, 2 * SLOTS)
        else:
            entries = 2 * SLOTS * self.kv_args.page_size
            self.prep_handles_slice_dst[name] = (("slice", name, entries), 2 * SLOTS, group)

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

    def send_aux(self, *given: Any) -> int:
        if self.agent.breaks_at == "aux":
            raise RuntimeError("no such memory")
        if self.writes_notify == nixl_writes_notify():
            inspect.signature(NixlKVManager.send_aux).bind(self, *given)
        to, source, _, place = given[:4]
        self.agent.sent.append(("aux", {"to": to, "source": source, "place": place}))
        self.agent.notes += given[4:]
        return self.agent.post()

    def notes(self) -> list[str]:
        """What decode's agents will read, in order."""
        return self.agent.notes


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
