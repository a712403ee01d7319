"""The pool's answers are stock SGLang's, and every request ends, over Mooncake too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.serving.asking import REFUSED_WITHIN_S
from tests.serving.client import Client, Plan, difference, text_tokens
from tests.serving.plans import draw_case
from tests.serving_mooncake.conftest import (
    DECODE_TOKENS,
    FAULTY_LENGTH,
    INSTANCE_TOKENS,
    PATIENCE_S,
    POOL_SIZE,
)

TOLERANCE = 1e-3
FREE = [INSTANCE_TOKENS] * POOL_SIZE
PLANS: list[Plan] = [
    [(1021, [2])],
    [(1021, [1, 0])],
    [(1021, [0, 2, 1])],
    [(300, [1]), (721, [1, 2])],
    [(1, [2]), (510, [2, 0]), (510, [2, 0, 1])],
    [(200, [0, 1]), (200, [0, 1]), (621, [0, 1, 2])],
]


@pytest.fixture(autouse=True)
def nothing_is_left(client: Client) -> Iterator[None]:
    yield
    assert client.wait_free(FREE, timeout_s=60) == FREE


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_forced_plan(plan: Plan, client: Client, checkpoint: Path) -> None:
    prompt = text_tokens(checkpoint, 1021, 3)
    difference(client.stock(prompt), client.pool(prompt, plan), TOLERANCE)


def test_plans_of_all_kinds_at_once(client: Client, checkpoint: Path) -> None:
    cases = [draw_case(n, seed, POOL_SIZE) for n in (1, 3, 129, 509, 2039) for seed in range(4)]
    prompts = [text_tokens(checkpoint, case.length, case.seed) for case in cases]
    with ThreadPoolExecutor(6) as threads:
        plans = (case.raw_plan for case in cases)
        answers = list(threads.map(client.pool, prompts, plans))
        answers += threads.map(client.pool, prompts)
    for prompt, answer in zip([*prompts, *prompts], answers, strict=True):
        difference(client.stock(prompt), answer, TOLERANCE)


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.4, 1.0])
def test_an_abort(delay_s: float, client: Client, checkpoint: Path) -> None:
    sampling = {"custom_params": {"cdsp_plan": [(2000, [0]), (2000, [0, 1]), (2000, [0, 1, 2])]}}
    tokens, rid = text_tokens(checkpoint, 6000, 4), f"abort-{delay_s}"
    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(
            client.generate, client.servers.url, tokens, rid=rid, sampling_params=sampling
        )
        time.sleep(delay_s)
        client.abort(rid)
        response: requests.Response = job.result(timeout=100)
    assert response.status_code >= 400 or response.json()["meta_info"]["finish_reason"]


def test_a_client_that_leaves(client: Client, checkpoint: Path) -> None:
    plan: Plan = [(3000, [1]), (3000, [1, 2])]
    tokens = text_tokens(checkpoint, 6000, 5)
    for after_s in (0.2, 0.6):
        client.stream_and_leave(tokens, after_s, custom_params={"cdsp_plan": plan})


@pytest.mark.parametrize(
    ("length", "plan", "reason"),
    [
        (60, [(10, [0])], "the prompt has 60"),
        (FAULTY_LENGTH, [(400, [0]), (FAULTY_LENGTH - 400, [0, 1])], "chunk 1 failed on instance"),
    ],
    ids=["refused", "failed"],
)
def test_a_reason_reaches_the_routers_client(
    length: int, plan: Plan, reason: str, client: Client, checkpoint: Path
) -> None:
    """Long before decode would have waited long enough for itself."""
    response = client.generate(
        client.servers.url,
        text_tokens(checkpoint, length, 2),
        sampling_params={"custom_params": {"cdsp_plan": plan}},
    )
    assert response.status_code >= 400
    assert reason in response.text
    prompt = text_tokens(checkpoint, length + 1, 2)
    plan = [(length, [0]), (1, [0, 1])]
    difference(client.stock(prompt), client.pool(prompt, plan), TOLERANCE)


def test_a_prompt_that_decode_cannot_hold(client: Client, checkpoint: Path) -> None:
    """Decode's registration does not tell its size, so the prefill server's flag does."""
    longest = DECODE_TOKENS - 512  # less SGLang's default of --num-reserved-decode-tokens
    tokens = text_tokens(checkpoint, longest + 1, 2)
    start_s = time.monotonic()
    response = client.generate(client.servers.url, tokens)
    assert time.monotonic() - start_s < REFUSED_WITHIN_S
    assert response.status_code >= 400
    assert f"decode takes at most {longest}" in response.text
    difference(client.stock(tokens[1:]), client.pool(tokens[1:]), TOLERANCE)


def promised_tokens(client: Client) -> int:
    """KV slots of requests that have a plan: decode has named their pages."""
    url = f"{client.servers.urls['prefill']}/cdsp/status"
    pool = requests.get(url, timeout=10).json()["pool"]
    return sum(pool["capacity_tokens"]) - sum(pool["free_tokens"])


def test_a_decode_server_that_froze_is_used_again(client: Client, checkpoint: Path) -> None:
    """A failed write costs its request; stock SGLang would never write to that server again."""
    tokens = text_tokens(checkpoint, 6000, 5)
    plan = {"custom_params": {"cdsp_plan": [(2000, [0]), (2000, [0, 1]), (2000, [0, 1, 2])]}}
    server = psutil.Process(client.servers.servers["decode"].pid)
    frozen = [server, *server.children(recursive=True)]
    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(client.generate, client.servers.url, tokens, sampling_params=plan)
        deadline_s = time.monotonic() + 30
        while not promised_tokens(client):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        for process in frozen:
            process.suspend()
        try:
            time.sleep(PATIENCE_S + 4)
        finally:
            for process in frozen:
                process.resume()
        assert job.result(timeout=60).status_code >= 400
    prompt = text_tokens(checkpoint, 300, 5)
    wide: Plan = [(100, [0]), (200, [0, 1, 2])]
    sampling = {"custom_params": {"cdsp_plan": wide}}
    for _ in range(30):
        response = client.generate(client.servers.url, prompt, sampling_params=sampling)
        if response.status_code == 200:
            break
        assert "failed" in response.text
        time.sleep(1)
    difference(client.stock(prompt), client.pool(prompt, wide), TOLERANCE)
