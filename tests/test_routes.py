"""Who may use the routes: SGLang's own middleware decides, by the level of each route."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.srt.utils.auth import add_api_key_middleware

from sglang_cdsp.protocol.admin import AdminServer
from sglang_cdsp.protocol.heartbeat import Heartbeat
from sglang_cdsp.routes import add_routes

API, ADMIN = "the api key", "the admin key"
SOCKET_KEY = "between the processes"
STOP = {"seconds": 600}


class Controller:
    """The controller's end of the admin socket, served by a thread."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.endpoint = f"ipc://@test-routes-{uuid.uuid4().hex}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._admin = AdminServer(
            self._context,
            self.endpoint,
            SOCKET_KEY,
            status=lambda: {"updates": len(self.updates)},
            update=self.updates.append,
            timeline=lambda since: {"since": since},
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            self._admin.socket.poll(20)
            self._admin.serve()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._admin.socket.close()
        self._context.term()


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()


def client_of(
    controller: Controller,
    *,
    api: str | None,
    admin: str | None,
    excuse: Callable[[float], None] = lambda seconds: None,
) -> TestClient:
    """A client of SGLang's middleware with our routes behind it."""
    app = FastAPI()
    add_routes(app, controller.endpoint, SOCKET_KEY, excuse)
    if api or admin:
        add_api_key_middleware(app, api_key=api, admin_api_key=admin)
    return TestClient(app)


@pytest.mark.parametrize(
    ("api", "admin", "right"),
    [(None, ADMIN, ADMIN), (API, None, API), (API, ADMIN, ADMIN)],
)
def test_the_servers_key_is_needed(
    controller: Controller, api: str | None, admin: str | None, right: str
) -> None:
    client = client_of(controller, api=api, admin=admin)
    wrong = [key for key in (API, ADMIN, "a guess") if key != right]
    for headers in ({}, *({"Authorization": f"Bearer {key}"} for key in wrong)):
        assert client.get("/cdsp/status", headers=headers).status_code == 401
        assert client.get("/cdsp/timeline?since=0", headers=headers).status_code == 401
        assert client.post("/cdsp/update", json={"a": 1}, headers=headers).status_code == 401
        assert client.post("/cdsp/announce_stop", json=STOP, headers=headers).status_code == 401
    assert controller.updates == [], "an update without the key is not applied"
    headers = {"Authorization": f"Bearer {right}"}
    assert client.get("/cdsp/status", headers=headers).json() == {"updates": 0}
    assert client.get("/cdsp/timeline?since=7", headers=headers).json() == {"since": 7}
    assert client.post("/cdsp/update", json={"a": 1}, headers=headers).status_code == 200
    assert controller.updates == [{"a": 1}]


def test_a_server_without_keys_asks_for_none(controller: Controller) -> None:
    client = client_of(controller, api=None, admin=None)
    assert client.get("/cdsp/status").json() == {"updates": 0}
    assert client.post("/cdsp/update", json={"a": 1}).json() == {"updates": 1}


def test_a_stop_is_announced_to_the_process_that_answers(controller: Controller) -> None:
    told: list[float] = []
    client = client_of(controller, api=None, admin=None, excuse=told.append)
    assert client.post("/cdsp/announce_stop", json=STOP).json() == {"seconds": 600.0}
    assert client.post("/cdsp/announce_stop", json={"seconds": 0}).status_code == 200
    assert told == [600.0, 0.0]


@pytest.mark.parametrize(
    "body", [[], {}, {"seconds": "600"}, {"seconds": True}, {"seconds": -1}, {**STOP, "x": 1}]
)
def test_a_stop_of_unknown_length_is_refused(controller: Controller, body: Any) -> None:
    heartbeat = Heartbeat.create()
    client = client_of(controller, api=None, admin=None, excuse=heartbeat.excuse)
    answer = client.post("/cdsp/announce_stop", json=body)
    assert answer.status_code == 400
    assert "second" in answer.json()["error"]["message"]
    assert heartbeat.excused_until_s == 0.0


def test_the_timeline_is_asked_for_all_or_from_a_version_on(controller: Controller) -> None:
    client = client_of(controller, api=None, admin=None)
    assert client.get("/cdsp/timeline").json() == {"since": 0}
    assert client.get("/cdsp/timeline?since=12").json() == {"since": 12}
    for wrong in ("-1", "1.5", "x", "", "9" * 16, "\u0664"):
        answer = client.get("/cdsp/timeline", params={"since": wrong})
        assert answer.status_code == 400
        assert "since=0" in answer.json()["error"]["message"]
