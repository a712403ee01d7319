"""An instance that is killed while requests prefill and decode; the last tests of these servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from tests.serving.client import Answer, Plan, difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving_seats.seats import scheduler, seats, states, until, until_up
from tests.serving_unified.client import OneServerClient

TOLERANCE = 1e-3
VICTIM = 1
# By what the victim has of a request: prompt, plan and output.
JOBS: dict[str, tuple[int, Plan, int]] = {
    "decodes there": (900, [(400, [1]), (500, [1, 2])], 600),
    "decodes elsewhere, prefilled there too": (900, [(400, [0]), (500, [0, 1])], 300),
    "prefills there": (8000, [(4000, [3]), (4000, [3, 1])], 4),
    "is elsewhere": (3000, [(1500, [2]), (1500, [2, 3])], 24),
}
MAY_END = {"decodes there", "prefills there"}
"""Whose KV the killed instance may have had alone."""


def body(tokens: list[int], plan: Plan, limit: int) -> dict[str, Any]:
    sampling = {
        "temperature": 0,
        "ignore_eos": True,
        "max_new_tokens": limit,
        "custom_params": {"cdsp_plan": plan},
    }
    return {
        "input_ids": tokens,
        "sampling_params": sampling,
        "return_logprob": True,
        "top_logprobs_num": 5,
        "stream": True,
    }


def stream(
    client: OneServerClient, job: dict[str, Any], begun: Callable[[], None]
) -> tuple[Answer | None, str]:
    """The answer when a stream is over, or None, and what it says went wrong."""
    last: Any = None
    url = f"{client.servers.urls['pool']}/generate"
    with requests.post(url, json=job, stream=True, timeout=300) as response:
        if response.status_code != 200:
            begun()
            return None, response.text
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                last = json.loads(line.removeprefix(b"data: "))
                begun()
    reason = ((last or {}).get("meta_info") or {}).get("finish_reason") or {}
    if reason.get("type") == "length":
        return Answer.of(last), ""
    return None, json.dumps(last)


def test_a_killed_instance_ends_its_own_requests_only(
    client: OneServerClient, checkpoint: Path
) -> None:
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    prompts = {name: text_tokens(checkpoint, JOBS[name][0], seed) for seed, name in enumerate(JOBS)}
    begun = {name: threading.Event() for name in JOBS}
    before = seats(client)[VICTIM]

    def ask(name: str) -> tuple[Answer | None, str]:
        _, plan, limit = JOBS[name]
        return stream(client, body(prompts[name], plan, limit), begun[name].set)

    with ThreadPoolExecutor(len(JOBS)) as threads:
        ends = {name: threads.submit(ask, name) for name in JOBS}
        for name in ("decodes there", "decodes elsewhere, prefilled there too"):
            assert begun[name].wait(120)
        scheduler(client, VICTIM).kill()
        found = {name: end.result() for name, end in ends.items()}
    until(lambda: seats(client)[VICTIM]["incarnation"] == before["incarnation"] + 1)
    until_up(client)
    for name, (answer, words) in found.items():
        if answer is None:
            assert name in MAY_END, words
            assert f"instance {VICTIM}" in words
            assert "send it again" in words
        else:
            limit = {"sampling_params": {"max_new_tokens": JOBS[name][2]}}
            difference(client.stock(prompts[name], **limit), answer, TOLERANCE)
    assert "SIGKILL" in seats(client)[VICTIM]["deaths"][-1]["words"]
    assert client.wait_free(everything, timeout_s=30) == everything


def test_the_new_life_prefills_and_decodes(client: OneServerClient, checkpoint: Path) -> None:
    assert states(client) == ["up"] * POOL_SIZE
    for seed, plan in enumerate(
        ([(700, [VICTIM])], [(300, [VICTIM]), (400, [VICTIM, 0])], [(300, [3]), (400, [3, VICTIM])])
    ):
        tokens = text_tokens(checkpoint, 700, seed)
        difference(client.stock(tokens), client.pool(tokens, plan), TOLERANCE)
