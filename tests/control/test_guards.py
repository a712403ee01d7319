"""Guards refuse with the remedy, behind SGLang's own keys, and let everything else pass."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sglang.srt.utils.auth import AuthLevel, add_api_key_middleware, auth_level

from sglang_cdsp.control.guards import install
from sglang_cdsp.control.memory import Memory

admin = auth_level(AuthLevel.ADMIN_OPTIONAL)


class Server:
    """An application with some of SGLang's paths."""

    def __init__(self, requests: int = 0) -> None:
        self.app = FastAPI()
        self.requests = requests
        self.bodies: list[Any] = []
        self.error: Exception | None = None

        async def answer(request: Request) -> None:
            if self.error is not None:
                raise self.error
            self.bodies.append(await request.json())

        for path in (
            *("/start_profile", "/release_memory_occupation", "/resume_memory_occupation"),
            *("/open_session", "/slow_down"),
        ):
            self.app.add_api_route(path, admin(answer), methods=["GET", "POST"])
        for _ in range(2):
            install(self.app, Memory(lambda: self.requests))
        self.client = TestClient(self.app, raise_server_exceptions=False)


def test_what_the_pool_does_not_have_is_refused_with_the_remedy() -> None:
    server = Server()
    for answer in (server.client.get("/open_session"), server.client.post("/open_session")):
        assert answer.status_code == 400
        assert "/open_session is not served with --cdsp" in answer.json()["error"]["message"]
    assert server.bodies == []


def test_keys_are_asked_for_first() -> None:
    server = Server()
    add_api_key_middleware(server.app, api_key=None, admin_api_key="key")
    assert server.client.post("/open_session").status_code == 401
    headers = {"Authorization": "Bearer key"}
    assert server.client.post("/open_session", headers=headers).status_code == 400


@pytest.mark.parametrize("error", [RuntimeError("no disk"), ValueError("no level")], ids=str)
def test_a_mistake_is_told_in_words(error: Exception) -> None:
    server = Server()
    server.error = error
    answer = server.client.post("/start_profile", json={})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == str(error)


def test_a_fault_of_sglangs_own_stays_one() -> None:
    server = Server()
    server.error = KeyError("of its own")
    assert server.client.post("/start_profile", json={}).status_code == 500
    server.error = RuntimeError("of its own")
    assert server.client.post("/slow_down", json={}).status_code == 500


def test_memory_that_is_not_released_cannot_be_resumed() -> None:
    server = Server()
    answer = server.client.post("/resume_memory_occupation", json={})
    assert answer.status_code == 400
    assert "not released" in answer.json()["error"]["message"]
    body = {"tags": ["kv_cache"]}
    assert server.client.post("/release_memory_occupation", json=body).status_code == 200
    assert server.client.post("/release_memory_occupation", json=body).status_code == 400
    assert server.client.post("/resume_memory_occupation", json=body).status_code == 200
    assert server.bodies == [body, body], "SGLang reads the whole body, once each"


def test_a_busy_pool_keeps_its_memory() -> None:
    server = Server(requests=2)
    answer = server.client.post("/release_memory_occupation", json={})
    assert answer.status_code == 400
    assert "2 requests" in answer.json()["error"]["message"]


def test_a_release_that_failed_released_nothing() -> None:
    server = Server()
    server.error = KeyError("of its own")
    assert server.client.post("/release_memory_occupation", json={}).status_code == 500
    server.error = None
    assert server.client.post("/release_memory_occupation", json={}).status_code == 200


def test_two_releases_at_once_are_one() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> None:
        started.set()
        await go_on.wait()

    app = FastAPI()
    app.add_api_route("/release_memory_occupation", slow, methods=["POST"])
    install(app, Memory(lambda: 0))

    async def post() -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/release_memory_occupation",
            "headers": [],
            "query_string": b"",
            "root_path": "",
            "app": app,
        }
        await app(scope, receive, send)
        return int(sent[0]["status"])

    async def both() -> tuple[int, int]:
        first = asyncio.create_task(post())
        await started.wait()
        second = await post()
        go_on.set()
        return await first, second

    assert asyncio.run(both()) == (200, 400)
