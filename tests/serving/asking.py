"""Asking endpoints of the servers under test, and waiting for what they say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import requests

from tests.serving.client import Client

WITHIN_S = 30.0
REFUSED_WITHIN_S = 30.0
"""What is refused at once has its answer by then, on a busy machine too; decode's own time-outs are
300 s."""


def call(client: Client, server: str, method: str, path: str, body: Any = None) -> Any:
    """Ask a server's endpoint."""
    url = f"{client.servers.urls[server]}{path}"
    return requests.request(method, url, json=body, timeout=120)


def pool(client: Client, path: str, body: Any = None) -> Any:
    """POST to the pool."""
    return call(client, "prefill", "POST", path, body)


def words(response: Any) -> str:
    """What a refusal says."""
    return str(response.json()["error"]["message"])


def chunks_started(client: Client, sp_size: int) -> int:
    """Chunks of a size of the whole pool so far."""
    status = call(client, "prefill", "GET", "/cdsp/status").json()
    return int(status["counters"]["chunks_by_sp_size"].get(str(sp_size), 0))


def loads(client: Client) -> list[dict[str, Any]]:
    """The loads of the instances."""
    found: list[dict[str, Any]] = call(client, "prefill", "GET", "/v1/loads").json()["loads"]
    return found


def in_hand(client: Client) -> int:
    """Requests that the pool says it has."""
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads(client))


def until(reached: Callable[[], bool]) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
