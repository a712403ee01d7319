# ruff: noqa: F401 - fixtures and tests that run here
"""How requests of one server end: streams, aborts at any moment, and what is left."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import requests

from tests.serving.asking import until
from tests.serving.client import text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.shared.ends import (
    nothing_left_and_still_right,
    test_abort_all,
    test_abort_by_rid_at_any_moment,
    test_clients_that_disconnect,
)
from tests.serving_unified.client import OneServerClient

PLAN = [[1000, [0]], [1000, [0, 1]]]


def streamed(client: OneServerClient, tokens: list[int], rid: str, limit: int) -> list[Any]:
    """What a stream says, event by event."""
    body: dict[str, Any] = {
        "rid": rid,
        "input_ids": tokens,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": limit,
            "ignore_eos": True,
            "custom_params": {"cdsp_plan": PLAN},
        },
        "stream": True,
    }
    url = f"{client.servers.urls['pool']}/generate"
    with requests.post(url, json=body, stream=True, timeout=120) as response:
        return [
            json.loads(line.removeprefix(b"data: "))
            for line in response.iter_lines()
            if line.startswith(b"data: {")
        ]


def test_tokens_come_one_by_one(client: OneServerClient, checkpoint: Path) -> None:
    events = streamed(client, text_tokens(checkpoint, 2000, 11), "stream", 12)
    assert events[-1]["meta_info"]["completion_tokens"] == 12
    assert len(events) > 6


def test_a_client_that_leaves_leaves_nothing(client: OneServerClient, checkpoint: Path) -> None:
    plan = {"custom_params": {"cdsp_plan": PLAN}}
    client.stream_and_leave(text_tokens(checkpoint, 2000, 13), 3.0, max_new_tokens=8000, **plan)


def test_an_abort_ends_a_request_that_decodes(client: OneServerClient, checkpoint: Path) -> None:
    found: list[Any] = []
    tokens = text_tokens(checkpoint, 2000, 12)
    reader = threading.Thread(
        target=lambda: found.extend(streamed(client, tokens, "aborted", 4000))
    )
    reader.start()
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert until(lambda: client.free_tokens() != everything)
    time.sleep(3.0)
    client.post("/abort_request", {"rid": "aborted"}).raise_for_status()
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert found[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < found[-1]["meta_info"]["completion_tokens"] < 4000
