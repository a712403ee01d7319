"""Streams go on when an instance that decodes them is lost, or has retracted them."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.asking import call
from tests.serving.client import Answer, difference, text_tokens
from tests.serving_resumed.conftest import SLOTS
from tests.serving_seats.seats import scheduler, until, until_up
from tests.serving_unified.client import OneServerClient

TOLERANCE = 1e-3
OUTPUT = 48
PROMPTS = (
    (1500, [[700, [0]], [800, [0, 1]]]),
    (1400, [[1400, [1, 0]]]),
    (1300, [[1300, [0]]]),
    (1200, [[600, [1]], [600, [1, 0]]]),
    (300, None),
    (200, None),
    (120, None),
    (1100, None),
)
"""Lengths of prompts and plans: SP 2 and 1, by either home, and SGLang's own short ones."""

REGEX = "[a-zA-Z0-9 .,]{400,}"


def body(tokens: list[int], plan: Any, **sampling: Any) -> dict[str, Any]:
    """A request for a greedy stream with log-probabilities."""
    if plan is not None:
        sampling["custom_params"] = {"cdsp_plan": plan}
    return {
        "input_ids": tokens,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": OUTPUT,
            "ignore_eos": True,
            **sampling,
        },
        "return_logprob": True,
        "top_logprobs_num": 2,
    }


class Stream:
    """A client that reads a stream to its end."""

    def __init__(self, url: str, request: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self._url, self._request = url, {**request, "stream": True}

    def read(self) -> dict[str, Any]:
        """The last event, which has everything."""
        with requests.post(
            f"{self._url}/generate", json=self._request, stream=True, timeout=300
        ) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    self.events.append(json.loads(line.removeprefix(b"data: ")))
        assert "error" not in self.events[-1], self.events[-1]
        return self.events[-1]


def counters(client: OneServerClient) -> dict[str, Any]:
    """What the pool has counted."""
    found: dict[str, Any] = call(client, "pool", "GET", "/cdsp/status").json()["counters"]
    return found


def compare(client: OneServerClient, request: dict[str, Any], found: dict[str, Any]) -> None:
    """An answer is stock's, token by token, and so is its text."""
    url = client.servers.urls["single"]
    stock = requests.post(f"{url}/generate", json=request, timeout=120).json()
    meta = found["meta_info"]
    assert meta["completion_tokens"] == len(found["output_ids"]) == OUTPUT
    assert meta["output_token_logprobs_length"] == OUTPUT
    assert meta["finish_reason"] == stock["meta_info"]["finish_reason"]
    _, early = difference(Answer.of(stock), Answer.of(found), TOLERANCE)
    if not early:
        assert found["text"] == stock["text"]


def no_repetition(events: Sequence[dict[str, Any]]) -> None:
    """Each event has all of the one before it, and no fewer tokens."""
    for earlier, later in pairwise(events):
        assert later["output_ids"][: len(earlier["output_ids"])] == earlier["output_ids"]
        assert later["text"].startswith(earlier["text"].rstrip("\ufffd"))


def wanted(checkpoint: Path, seed: int) -> list[dict[str, Any]]:
    """Requests of all kinds."""
    found = [body(text_tokens(checkpoint, n, seed), plan) for n, plan in PROMPTS]
    penalties = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.1}
    found[2]["sampling_params"] |= {**penalties, "min_new_tokens": 40}
    found[3]["sampling_params"] |= {"regex": REGEX}
    return found


def everything_is_free(client: OneServerClient) -> None:
    assert client.wait_free([SLOTS] * 2, timeout_s=30.0) == [SLOTS] * 2


def run(
    client: OneServerClient, asked: list[dict[str, Any]], strike: Any = None
) -> list[dict[str, Any]]:
    """Read all streams at once; strike when all of them have begun."""
    streams = [Stream(client.servers.urls["pool"], request) for request in asked]
    with ThreadPoolExecutor(len(streams)) as threads:
        reading = [threads.submit(stream.read) for stream in streams]
        if strike is not None:
            until(lambda: all(len(stream.events) >= 4 for stream in streams))
            assert not any(done.done() for done in reading), "they were to be struck in the middle"
            strike()
        answers = [done.result() for done in reading]
    for stream in streams:
        no_repetition(stream.events)
    return answers


def test_what_is_retracted_is_computed_anew_by_chunk_tasks(
    client: OneServerClient, checkpoint: Path
) -> None:
    before = counters(client)["requests_resumed"]
    asked = wanted(checkpoint, 1)
    for request, answer in zip(asked, run(client, asked), strict=True):
        compare(client, request, answer)
    assert counters(client)["requests_resumed"] > before
    everything_is_free(client)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=str)
def test_streams_survive_their_instance(
    client: OneServerClient, checkpoint: Path, blow: signal.Signals
) -> None:
    until_up(client)
    before = counters(client)
    asked = wanted(checkpoint, 2)
    struck = threading.Event()

    def strike() -> None:
        scheduler(client, 0).send_signal(blow)
        struck.set()

    answers = run(client, asked, strike)
    assert struck.is_set()
    for request, answer in zip(asked, answers, strict=True):
        compare(client, request, answer)
    after = counters(client)
    assert after["requests_lost"] == before["requests_lost"]
    assert after["requests_resumed"] > before["requests_resumed"]
    assert sum(after["deaths"].values()) == sum(before["deaths"].values()) + 1
    until_up(client)
    everything_is_free(client)
