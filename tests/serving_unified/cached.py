"""What tests of cached prefixes ask one server, and what they read of it."""

from __future__ import annotations

from typing import Any

import requests

from tests.serving.client import Answer, read
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving_unified.client import OneServerClient

OUTPUT = 8
LIMIT: dict[str, Any] = {"sampling_params": {"max_new_tokens": OUTPUT}}


def prefixes(client: OneServerClient) -> dict[str, Any]:
    """What the controller knows of caches."""
    url = f"{client.servers.urls['pool']}/cdsp/status"
    shown: dict[str, Any] = requests.get(url, timeout=30).json()["prefixes"]
    return shown


def ask(client: OneServerClient, prompt: list[int], **fields: Any) -> tuple[Answer, int]:
    """The pool's answer, by a plan of its own, and how many tokens were cached."""
    response = client.generate(client.servers.urls["pool"], prompt, **{**LIMIT, **fields})
    return read(response), int(response.json()["meta_info"]["cached_tokens"])


def flush(client: OneServerClient) -> None:
    """Empty all caches."""
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
    assert client.post("/flush_cache").status_code == 200
