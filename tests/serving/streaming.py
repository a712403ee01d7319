"""What a client measures of streamed answers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests

from sglang_cdsp.testing.stack import RunningStack
from tests.serving.routers import bootstrap_port

FIRST_ROOM = 7_000_000


@dataclass(frozen=True)
class Streamed:
    """One answer.

    Attributes:
        prompt_tokens, output_tokens: as the last event counts them.
        ttft_s: from the request to the event with the first token.
        tpot_s: seconds a token from there to the last event.
    """

    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


def stream_all(
    servers: RunningStack, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[Streamed]:
    """Ask for some tokens of each prompt, greedily and at once, and read them as they come.

    It posts to both servers as a router does, but hears the prefill server out: the mini router
    leaves it when decode's stream ends, and what has not ended at the pool by then is aborted.

    Raises:
        AssertionError: with the server's words if one refuses, or an answer is short.
    """
    port = bootstrap_port(servers)
    with ThreadPoolExecutor(2 * len(prompts)) as threads:
        prefills: list[Future[requests.Response]] = []
        streams: list[Future[Streamed]] = []
        for number, tokens in enumerate(prompts):
            body = {
                "input_ids": list(tokens),
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": new_tokens,
                    "ignore_eos": True,
                },
                "bootstrap_host": "127.0.0.1",
                "bootstrap_port": port,
                "bootstrap_room": FIRST_ROOM + number,
            }
            prefills.append(threads.submit(_post, servers.urls["prefill"], body))
            streams.append(threads.submit(_stream, servers.urls["decode"], body))
        for prefill in prefills:
            assert prefill.result().status_code == 200, prefill.result().text
        return [answer.result() for answer in streams]


def _post(url: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(f"{url}/generate", json=body, timeout=120)


def _stream(url: str, body: dict[str, Any]) -> Streamed:
    seen: list[tuple[float, int]] = []
    prompt_tokens = 0
    sent_s = time.perf_counter()
    streaming = {**body, "stream": True}
    with requests.post(f"{url}/generate", json=streaming, stream=True, timeout=120) as response:
        assert response.status_code == 200, response.text
        for line in response.iter_lines():
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            told = json.loads(line[6:])["meta_info"]
            prompt_tokens = int(told["prompt_tokens"])
            seen.append((time.perf_counter(), int(told["completion_tokens"])))
    (first_s, first), (last_s, last) = seen[0], seen[-1]
    assert last > first, f"no token after the first event: {seen}"
    return Streamed(prompt_tokens, last, first_s - sent_s, (last_s - first_s) / (last - first))
