"""Decode's messages as the stock receivers of all transfer engines write them.

Both forms of SGLang's protocol are tried with each release; what is stock is the installed one's.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import pytest
import zmq
from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.common.conn import CommonKVManager
from sglang.srt.disaggregation.common.utils import pack_int_lists
from sglang.srt.disaggregation.mooncake import conn as mooncake
from sglang.srt.disaggregation.nixl import conn as nixl
from sglang.srt.disaggregation.nixl.conn import GUARD

from sglang_cdsp.controller.decode.endpoint import FORGOTTEN_AFTER_S, DecodeEndpoint
from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeRank
from sglang_cdsp.controller.decode.wire import (
    PeerMessage,
    RoomAbort,
    RoomPages,
    acknowledgement,
    wire_format,
    wire_formats,
)
from sglang_cdsp.controller.request import AbortTarget
from sglang_cdsp.releases import aborts_have_generations, nixl_writes_notify

WHERE = (b"10.0.0.9", b"5001", b"agent-3")
INDICES = b"\x01\x00\x00\x00\x04\x00\x00\x00"
PAGES = {
    "nixl": [GUARD, b"77", *WHERE, INDICES, b"12", b"2", b"", b"64", b"0"],
    "mooncake": [b"77", *WHERE, INDICES, b"12", b"", b"2", b"64", b""],
}
# Up to the number of pages, which is the last of the fields that NIXL's must have.
REGISTRATION = {
    "nixl": [
        *(GUARD, b"None", *WHERE, b"metadata", b"8 bytes.", b"8 bytes.", b"", b"0", b"1", b"0"),
        *(b"64", b"", b"", b"", b"", b"129"),
    ],
    "mooncake": [b"None", *WHERE, b"8 bytes.", b"8 bytes.", b"", b"0", b"1", b"64"],
}
OLDER = wire_formats(writes_notify=True, generations=False)
NEWER = wire_formats(writes_notify=False, generations=True)
both = pytest.mark.parametrize("engine", ["nixl", "mooncake"])


@both
def test_a_registration(engine: str) -> None:
    frames = REGISTRATION[engine]
    rank = DecodeRank(1, "10.0.0.9", 5001, 129 if engine == "nixl" else None)
    said = wire_format(engine).parse(1, frames)
    assert said == PeerMessage("agent-3", rank, frames)
    assert isinstance(said, PeerMessage)
    assert said.rank.agent == "agent-3"
    if engine == "nixl":
        assert nixl.KVArgsRegisterInfo.from_zmq(frames[1:]).dst_num_slots == 129


@pytest.mark.parametrize("pages", [[], [b""], [b"0"]])
def test_a_registration_that_does_not_say_how_much_decode_holds(pages: list[bytes]) -> None:
    said = wire_format("nixl").parse(0, [*REGISTRATION["nixl"][:-1], *pages])
    assert isinstance(said, PeerMessage)
    assert said.rank.pages is None


@both
def test_a_registration_with_more_than_kv_pages(engine: str) -> None:
    """Buffers of windows stand where stock prefill reads those of states."""
    at = 8 if engine == "nixl" else 6
    frames = REGISTRATION[engine]
    for buffers, more in (([], False), ([[]], False), ([[4096, 8192]], True)):
        changed = [*frames[:at], pack_int_lists(buffers, "Q"), *frames[at + 1 :]]
        said = wire_format(engine).parse(0, changed)
        assert isinstance(said, PeerMessage)
        assert said.rank.keeps_more is more
        if engine == "nixl":
            stock = nixl.KVArgsRegisterInfo.from_zmq(changed[1:])
            assert stock.dst_state_data_ptrs == buffers


@both
def test_pages_of_a_room(engine: str) -> None:
    said = wire_format(engine).parse(1, PAGES[engine])
    assert isinstance(said, RoomPages)
    assert said.room == 77
    assert said.message == RoomMessage(1, "agent-3", 2, "10.0.0.9", 5001, PAGES[engine])


@both
def test_the_fields_stand_where_stock_prefill_reads_them(engine: str) -> None:
    """Stock drops NIXL's guard and parses the rest; both readings must agree."""
    said = wire_format(engine).parse(0, PAGES[engine])
    assert isinstance(said, RoomPages)
    stock: Any
    if engine == "nixl":
        stock = nixl.TransferInfo.from_zmq(PAGES[engine][1:])
        agent = stock.agent_name
    else:
        stock = mooncake.TransferInfo.from_zmq(PAGES[engine])
        agent = stock.mooncake_session_id
    ours = said.message
    assert (said.room, ours.host, ours.port) == (stock.room, stock.endpoint, stock.dst_port)
    assert (ours.agent, ours.required) == (agent, stock.required_dst_info_num)
    assert stock.dst_kv_indices.tolist() == [1, 4]
    assert (stock.decode_prefix_len, stock.is_dummy) == (64, False)


@both
def test_an_abort_with_and_without_an_address(engine: str) -> None:
    frames = [b"ABORT", b"77", b"10.0.0.9", b"5001"]
    target = AbortTarget(0, "10.0.0.9", 5001)
    assert OLDER[engine].parse(0, frames) == RoomAbort(77, target, frames)
    assert OLDER[engine].parse(2, frames[:2]) == RoomAbort(77, None, frames[:2])


@both
def test_an_abort_with_and_without_a_generation(engine: str) -> None:
    """Without one decode had named no pages: it waits for nothing, and would complain of an ack."""
    frames = [b"ABORT", b"77", b"10.0.0.9", b"5001", b"6"]
    target = AbortTarget(1, "10.0.0.9", 5001, generation=6)
    assert NEWER[engine].parse(1, frames) == RoomAbort(77, target, frames)
    for fewer in (frames[:4], frames[:2]):
        assert NEWER[engine].parse(1, fewer) == RoomAbort(77, None, fewer)


def test_the_installed_releases_form() -> None:
    forms = wire_formats(writes_notify=nixl_writes_notify(), generations=aborts_have_generations())
    assert {engine: wire_format(engine) for engine in forms} == forms
    assert forms in (OLDER, NEWER)


class AbortedDecode(CommonKVManager):
    """Decode's reading of acknowledgements, all stock, after it has aborted room 77."""

    def __init__(self) -> None:
        self.enable_deferred_decode_kv_release = True
        self._deferred_abort_ack_tracker: dict[int, Any] = {}
        self._deferred_abort_generation = 8

    def abort(self) -> int | None:
        """Arm the room anew; returns the abort's generation, None where there are none."""
        return self.register_deferred_abort_room(77)

    def hear(self, frames: list[bytes]) -> bool:
        """Whether the pages may be freed after a message."""
        if aborts_have_generations():
            assert self.handle_abort_ack_message(frames)
        else:
            self.note_abort_ack(int(frames[1]), int(frames[2]))
        return bool(self.is_abort_release_safe(77, 2))


def test_an_abort_is_acknowledged_by_every_rank_of_its_own_generation() -> None:
    decode = AbortedDecode()
    first, second = decode.abort(), decode.abort()
    older = [acknowledgement(77, AbortTarget(rank, "h", 1, first)) for rank in (0, 1)]
    newer = [acknowledgement(77, AbortTarget(rank, "h", 1, second)) for rank in (0, 1)]
    if aborts_have_generations():
        assert not any(decode.hear(frames) for frames in older), "of a room's earlier life"
    assert [decode.hear(frames) for frames in newer] == [False, True]


@both
@pytest.mark.parametrize("frames", [[b"WATERMARK", b"1"], [b"STAGING_RSP"]])
def test_other_kinds_are_ignored(frames: list[bytes], engine: str) -> None:
    assert wire_format(engine).parse(0, frames) is None


def malformed() -> list[tuple[str, list[bytes]]]:
    """By engine: cut short, and with a field that cannot be read."""
    aborts = [[], [b"ABORT"], [b"ABORT", b"seven"], [b"ABORT", b"7", b"host", b"port", b"1"]]
    found = [(engine, frames) for engine in PAGES for frames in aborts]
    for engine, pages in PAGES.items():
        room = pages.index(b"77")
        found += [
            (engine, pages[: room + 1]),
            (engine, pages[: pages.index(b"2")]),
            (engine, [*pages[:room], b"seventy", *pages[room + 1 :]]),
            (engine, [*pages[: room + 3], b"\xff\xfe", *pages[room + 4 :]]),
        ]
    return found


@pytest.mark.parametrize(("engine", "frames"), malformed())
def test_malformed_messages_raise_what_the_reader_catches(engine: str, frames: list[bytes]) -> None:
    with pytest.raises((IndexError, ValueError)):
        wire_format(engine).parse(0, frames)


@both
def test_a_malformed_message_does_not_stop_the_reader(engine: str) -> None:
    contact = DecodeEndpoint(2, "127.0.0.1", wire_format(engine))
    sender: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    sender.setsockopt(zmq.LINGER, 0)
    sender.connect(contact.sockets[1].getsockopt_string(zmq.LAST_ENDPOINT))
    try:
        for frames in ([b"ABORT"], PAGES[engine]):
            sender.send_multipart(frames)
        read = []
        for _ in range(2):
            assert contact.sockets[1].poll(5000)
            read.append(contact.receive(1))
        assert read == [None, wire_format(engine).parse(1, PAGES[engine])]
    finally:
        sender.close()


class StockDecode(CommonKVManager):
    """Decode's reading of statuses, all stock, as the engine's manager is set up for it."""

    def __init__(self, engine: str) -> None:
        manager = {"nixl": nixl.NixlKVManager, "mooncake": mooncake.MooncakeKVManager}[engine]
        self.kv_status_msg_tag = manager.kv_status_msg_tag
        self.request_status = {77: KVPoll.WaitingForInput}
        self.prefill_response_tracker: dict[int, set[int]] = {77: set()}
        self.required_prefill_response_num_table = {77: 2}
        self.reasons: list[str] = []
        self.enable_staging = False

    def record_failure(self, bootstrap_room: int, failure_reason: str) -> None:
        self.reasons.append(failure_reason)

    def hear(self, frames: list[bytes]) -> KVPoll:
        """What decode holds of room 77 after a message."""
        parsed = self.parse_kv_status_message(frames)
        assert parsed is not None, "decode takes it for something else"
        room, status, rank, reason = parsed
        self.apply_prefill_status(
            bootstrap_room=room, status=status, prefill_rank=rank, failure_reason=reason
        )
        return self.request_status[77]


@both
def test_what_decode_hears(engine: str) -> None:
    listener: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
    port = listener.bind_to_random_port("tcp://127.0.0.1")
    contact = DecodeEndpoint(1, "127.0.0.1", wire_format(engine))
    first, second = (RoomMessage(rank, "agent", 1, "127.0.0.1", port, []) for rank in (0, 1))
    decode = StockDecode(engine)

    def heard() -> list[bytes]:
        assert listener.poll(5000)
        return listener.recv_multipart()

    try:
        contact.finish_room(77, first)
        if wire_format(engine).awaits_success:
            assert decode.hear(heard()) == KVPoll.WaitingForInput, "one of two ranks is done"
        contact.finish_room(77, first)
        if wire_format(engine).awaits_success:
            assert decode.hear(heard()) == KVPoll.WaitingForInput, "the same rank again"
        contact.finish_room(77, second)
        if wire_format(engine).awaits_success:
            assert decode.hear(heard()) == KVPoll.Success
        contact.fail_room(77, second, "out of slots", HTTPStatus.BAD_REQUEST)
        frames = heard()
        assert frames[-1] == b"400", "which stock decode does not look at"
        assert decode.hear(frames) == KVPoll.Failed
        assert decode.reasons == ["out of slots"]
        contact.ack_abort(77, AbortTarget(1, "127.0.0.1", port))
        assert heard() == [b"ABORT_ACK", b"77", b"1"]
        contact.ack_abort(77, AbortTarget(1, "127.0.0.1", port, generation=6))
        assert heard() == [b"ABORT_ACK", b"77", b"1", b"6"]
    finally:
        listener.close()


def test_a_decode_server_that_is_gone_does_not_stop_the_pool() -> None:
    contact = DecodeEndpoint(1, "127.0.0.1", wire_format("nixl"))
    for room in range(2000):
        contact.ack_abort(room, AbortTarget(0, "127.0.0.1", 1))


class Listener:
    """A decode rank's socket, open while in a ``with`` block."""

    def __init__(self, port: int = 0) -> None:
        self._port = port

    def __enter__(self) -> zmq.Socket[bytes]:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.bind(f"tcp://127.0.0.1:{self._port}")
        return self._socket

    def __exit__(self, *exception: object) -> None:
        self._socket.close(linger=0)


def next_change(contact: DecodeEndpoint) -> tuple[str, int, bool]:
    """What the contact notices within 10 s."""
    for _ in range(1000):
        for change in contact.changes():
            return change
        time.sleep(0.01)
    raise AssertionError("no change")


def test_a_watched_decode_rank_goes_and_comes_back() -> None:
    contact = DecodeEndpoint(1, "127.0.0.1", wire_format("nixl"))
    with Listener() as listener:
        port = int(listener.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        rank = DecodeRank(0, "127.0.0.1", port, 9)
        contact.watch(rank)
        contact.watch(rank)
        assert next_change(contact) == ("127.0.0.1", port, True)
    assert next_change(contact) == ("127.0.0.1", port, False)
    with Listener(port) as listener:
        assert next_change(contact) == ("127.0.0.1", port, True)
        contact.fail_room(7, rank, "no", HTTPStatus.BAD_REQUEST)
        assert listener.poll(5000)
        assert list(contact.changes()) == []


def test_a_decode_rank_that_stays_away_is_called_no_longer() -> None:
    """Until it says something: then it was only out of reach."""
    now_s = 0.0
    contact = DecodeEndpoint(1, "127.0.0.1", wire_format("nixl"), lambda: now_s)
    with Listener() as listener:
        port = int(listener.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        contact.watch(DecodeRank(0, "127.0.0.1", port, 9))
        assert next_change(contact) == ("127.0.0.1", port, True)
    assert next_change(contact) == ("127.0.0.1", port, False)
    now_s = FORGOTTEN_AFTER_S + 1
    assert list(contact.changes()) == []
    assert contact._outgoing == contact._monitors == {}
    pages = [*PAGES["nixl"][:2], b"127.0.0.1", b"%d" % port, *PAGES["nixl"][4:]]
    sender: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    sender.connect(contact.sockets[0].getsockopt_string(zmq.LAST_ENDPOINT))
    with Listener(port):
        sender.send_multipart(pages)
        assert contact.sockets[0].poll(5000)
        assert len(list(contact.messages())) == 1
        assert next_change(contact) == ("127.0.0.1", port, True)
    sender.close(linger=0)
