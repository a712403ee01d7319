"""The controller's admin over its real socket."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq

from sglang_cdsp.protocol.admin import AdminReply, AdminRequest, AdminServer

KEY = "the key"


class Desk:
    """A server, and a client of it."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.updates: list[Any] = []
        endpoint = f"inproc://{uuid.uuid4().hex}"
        self.admin = AdminServer(
            self.context,
            endpoint,
            KEY,
            status=self._status,
            update=self._update,
            timeline=lambda since: {"since": since},
        )
        self.client = self.context.socket(zmq.REQ)
        self.client.connect(endpoint)

    def _status(self) -> dict[str, Any]:
        return {"updates": len(self.updates)}

    def _update(self, body: Any) -> None:
        if body == "broken":
            raise RuntimeError("a fault of ours")
        if body == "bad":
            raise ValueError("a bad update")
        self.updates.append(body)

    def say(self, frame: bytes) -> AdminReply:
        self.client.send(frame)
        assert self.admin.socket.poll(5000)
        self.admin.serve()
        return msgspec.msgpack.decode(self.client.recv(), type=AdminReply)

    def ask(self, request: AdminRequest) -> AdminReply:
        return self.say(msgspec.msgpack.encode(request))


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.client.close()
    desk.admin.socket.close()
    desk.context.term()


def test_status_and_updates(desk: Desk) -> None:
    assert desk.ask(AdminRequest(KEY)) == AdminReply({"updates": 0})
    assert desk.ask(AdminRequest(KEY, {"a": 1})) == AdminReply({"updates": 1})
    assert desk.updates == [{"a": 1}]


@pytest.mark.parametrize("since", [0, 17])
def test_the_timeline_is_asked_from_where_the_last_answer_ended(desk: Desk, since: int) -> None:
    assert desk.ask(AdminRequest(KEY, since=since)) == AdminReply({"since": since})
    assert desk.updates == []


def test_a_refused_update_says_why_and_the_server_lives_on(desk: Desk) -> None:
    assert desk.ask(AdminRequest(KEY, "bad")).error == "a bad update"
    assert desk.ask(AdminRequest(KEY)).body == {"updates": 0}


@pytest.mark.parametrize("key", ["", "another", "the kez", "clé"])
def test_a_stranger_learns_and_changes_nothing(desk: Desk, key: str) -> None:
    reply = desk.ask(AdminRequest(key, {"a": 1}))
    assert (reply.body, desk.updates) == (None, [])
    assert "own HTTP process" in reply.error


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x81\xa3key\x01", b"{}"])
def test_foreign_bytes_are_answered_with_an_error(desk: Desk, frame: bytes) -> None:
    assert desk.say(frame).error
    assert desk.ask(AdminRequest(KEY)).error == ""


def test_a_fault_of_ours_is_an_answer_and_the_server_lives_on(desk: Desk) -> None:
    reply = desk.ask(AdminRequest(KEY, "broken"))
    assert reply.status == 500
    assert "a fault of ours" in reply.error
    assert desk.ask(AdminRequest(KEY)).body == {"updates": 0}
