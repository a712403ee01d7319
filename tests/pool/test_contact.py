"""Decode's messages as a stock ``NixlKVReceiver`` writes them."""

from __future__ import annotations

import pytest
import zmq
from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.nixl.conn import GUARD, TransferInfo

from sglang_cdsp.pool.contact import DecodeContact, PeerMessage, RoomAbort, RoomPages, parse
from sglang_cdsp.pool.rooms import RoomMessage

PAGES = [
    *(GUARD, b"77", b"10.0.0.9", b"5001", b"agent-3", b"\x01\x00\x00\x00\x04\x00\x00\x00"),
    *(b"12", b"2", b"", b"64", b"0"),
]
REGISTRATION = [GUARD, b"None", b"10.0.0.9", b"5001", b"agent-3", b"metadata", b"pointers"]


def test_a_registration() -> None:
    assert parse(1, REGISTRATION) == PeerMessage(1, "agent-3", REGISTRATION)


def test_pages_of_a_room() -> None:
    said = parse(1, PAGES)
    assert isinstance(said, RoomPages)
    assert said.room == 77
    assert said.message == RoomMessage(1, "agent-3", 2, "10.0.0.9", 5001, PAGES)


def test_the_fields_stand_where_stock_prefill_reads_them() -> None:
    """Stock drops the guard and parses the rest; both readings must agree."""
    said = parse(0, PAGES)
    assert isinstance(said, RoomPages)
    stock = TransferInfo.from_zmq(PAGES[1:])
    ours = said.message
    assert (said.room, ours.host, ours.port) == (stock.room, stock.endpoint, stock.dst_port)
    assert (ours.agent, ours.required) == (stock.agent_name, stock.required_dst_info_num)
    assert stock.dst_kv_indices.tolist() == [1, 4]
    assert (stock.decode_prefix_len, stock.is_dummy) == (64, False)


def test_an_abort_with_and_without_an_address() -> None:
    frames = [b"ABORT", b"77", b"10.0.0.9", b"5001"]
    assert parse(0, frames) == RoomAbort(77, 0, "10.0.0.9", 5001, frames)
    assert parse(2, frames[:2]) == RoomAbort(77, 2, None, None, frames[:2])


@pytest.mark.parametrize("frames", [[b"WATERMARK", b"1"], [b"STAGING_RSP"], [b""], [b"hello"]])
def test_other_kinds_are_ignored(frames: list[bytes]) -> None:
    assert parse(0, frames) is None


MALFORMED = [
    [],
    [b"ABORT"],
    [b"ABORT", b"seven"],
    [b"ABORT", b"7", b"host", b"port"],
    [GUARD, b"77"],
    [*PAGES[:1], b"seventy", *PAGES[2:]],
    [*PAGES[:4], b"\xff\xfe", *PAGES[5:]],
    PAGES[:7],
]


@pytest.mark.parametrize("frames", MALFORMED)
def test_malformed_messages_raise_what_the_reader_catches(frames: list[bytes]) -> None:
    with pytest.raises((IndexError, ValueError)):
        parse(0, frames)


def test_a_malformed_message_does_not_stop_the_reader() -> None:
    contact = DecodeContact(2, "127.0.0.1")
    sender: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    sender.setsockopt(zmq.LINGER, 0)
    sender.connect(contact.sockets[1].getsockopt_string(zmq.LAST_ENDPOINT))
    try:
        for frames in (MALFORMED[1], PAGES):
            sender.send_multipart(frames)
        read = []
        for _ in range(2):
            assert contact.sockets[1].poll(5000)
            read.append(contact.receive(1))
        assert read == [None, parse(1, PAGES)]
    finally:
        sender.close()


def test_what_decode_hears() -> None:
    """Frames as ``parse_kv_status_message`` and the decode listener of stock read them."""
    listener: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
    port = listener.bind_to_random_port("tcp://127.0.0.1")
    contact = DecodeContact(1, "127.0.0.1")
    message = RoomMessage(1, "agent-3", 1, "127.0.0.1", port, [])
    try:
        contact.fail_room(77, message, "out of slots")
        contact.ack_abort(77, 1, "127.0.0.1", port)
        heard = []
        for _ in range(2):
            assert listener.poll(5000)
            heard.append(listener.recv_multipart())
        failed = str(int(KVPoll.Failed)).encode()
        assert heard == [
            [b"KV_STATUS", b"77", failed, b"1", b"out of slots"],
            [b"ABORT_ACK", b"77", b"1"],
        ]
    finally:
        listener.close()


def test_a_decode_server_that_is_gone_does_not_stop_the_pool() -> None:
    contact = DecodeContact(1, "127.0.0.1")
    for room in range(2000):
        contact.ack_abort(room, 0, "127.0.0.1", 1)
