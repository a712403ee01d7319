"""Streams go on when an instance that decodes them is lost, or has retracted them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.asking import call
from tests.serving.client import Answer, difference, text_tokens
from tests.serving_resumed.conftest import SLOTS
from tests.serving_seats.seats import scheduler, until, until_up
from tests.serving_unified.client import OneServerClient
from tests.serving_unified.penalties import penalties
from tests.serving_unified.streams import Stream, no_repetition

TOLERANCE = 1e-3
OUTPUT, LONG_OUTPUT = 48, 160
"""Tokens; the longer one for streams that are to be struck in their middle."""
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
AT_HOME_0 = (0, 2)
"""Those that instance 0 decodes."""

REGEX = "[a-zA-Z0-9 .,]{1200,}"


def body(tokens: list[int], plan: Any, output: int, **sampling: Any) -> dict[str, Any]:
    """A request for a greedy stream with log-probabilities."""
    if plan is not None:
        sampling["custom_params"] = {"cdsp_plan": plan}
    return {
        "input_ids": tokens,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": output,
            "ignore_eos": True,
            **sampling,
        },
        "return_logprob": True,
        "top_logprobs_num": 2,
    }


def counters(client: OneServerClient) -> dict[str, Any]:
    """What the pool has counted."""
    found: dict[str, Any] = call(client, "pool", "GET", "/cdsp/status").json()["counters"]
    return found


def compare(client: OneServerClient, request: dict[str, Any], found: dict[str, Any]) -> None:
    """An answer is stock's, token by token, and so is its text."""
    url = client.servers.urls["single"]
    stock = requests.post(f"{url}/generate", json=request, timeout=120).json()
    meta, output = found["meta_info"], request["sampling_params"]["max_new_tokens"]
    assert meta["completion_tokens"] == len(found["output_ids"]) == output
    assert meta["output_token_logprobs_length"] == output
    assert meta["finish_reason"] == stock["meta_info"]["finish_reason"]
    _, early = difference(Answer.of(stock), Answer.of(found), TOLERANCE)
    if not early:
        assert found["text"] == stock["text"]


def wanted(checkpoint: Path, seed: int, output: int) -> list[dict[str, Any]]:
    """Requests of all kinds."""
    found = [body(text_tokens(checkpoint, n, seed), plan, output) for n, plan in PROMPTS]
    # In which order SGLang applies those that add and those that scale differs from one process to
    # the next: no request has both.
    found[0]["sampling_params"] |= penalties(repetition_penalty=1.1)
    found[2]["sampling_params"] |= {
        **penalties(frequency_penalty=0.5, presence_penalty=0.25),
        "min_new_tokens": 40,
    }
    found[3]["sampling_params"] |= {"regex": REGEX}
    return found


def everything_is_free(client: OneServerClient) -> None:
    assert client.wait_free([SLOTS] * 2, timeout_s=30.0) == [SLOTS] * 2


def run(
    client: OneServerClient, asked: list[dict[str, Any]], strike: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """Read all streams at once; strike when instance 0 is in the middle of one of them."""
    streams = [Stream(client.servers.urls["pool"], request) for request in asked]
    with ThreadPoolExecutor(len(streams)) as threads:
        reading = [threads.submit(stream.read) for stream in streams]
        if strike is not None:
            until(lambda: any(len(streams[n].events) >= 2 for n in AT_HOME_0))
            strike()
            struck = [n for n in AT_HOME_0 if streams[n].events and not reading[n].done()]
            assert struck, "one of them was to be struck in its middle"
        answers = [done.result() for done in reading]
    for stream in streams:
        no_repetition(stream.events)
    return answers


def test_what_is_retracted_is_computed_anew_by_chunk_tasks(
    client: OneServerClient, checkpoint: Path
) -> None:
    before = counters(client)["requests_resumed"]
    asked = wanted(checkpoint, 1, OUTPUT)
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
    asked = wanted(checkpoint, 2, LONG_OUTPUT)
    answers = run(client, asked, lambda: scheduler(client, 0).send_signal(blow))
    for request, answer in zip(asked, answers, strict=True):
        compare(client, request, answer)
    after = counters(client)
    assert after["requests_lost"] == before["requests_lost"]
    assert after["requests_resumed"] > before["requests_resumed"]
    assert sum(after["deaths"].values()) == sum(before["deaths"].values()) + 1
    until_up(client)
    everything_is_free(client)
