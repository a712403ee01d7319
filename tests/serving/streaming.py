"""What a client measures of streamed answers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests


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


def stream(url: str, tokens: Sequence[int], new_tokens: int) -> Streamed:
    """Ask for at least two tokens, greedily, and read them as they come.

    Raises:
        AssertionError: with the server's words if it refuses, or the answer is short.
    """
    body: dict[str, Any] = {
        "input_ids": list(tokens),
        "sampling_params": {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
        "stream": True,
    }
    seen: list[tuple[float, int]] = []
    prompt_tokens = 0
    sent_s = time.perf_counter()
    with requests.post(f"{url}/generate", json=body, stream=True, timeout=120) as response:
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


def stream_all(url: str, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Streamed]:
    """All at once."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(lambda tokens: stream(url, tokens, new_tokens), prompts))
