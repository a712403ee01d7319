"""What the pool does with requests, seen from outside."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from tests.serving.client import Client, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE


def logged(plan_log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in plan_log.read_text().splitlines()]


def test_server_info_shows_hooks_policy_and_model(client: Client) -> None:
    states = client.pool_states()
    assert len(states) == POOL_SIZE
    for state in states:
        assert "sglang.srt.managers.scheduler.Scheduler" in state["hooks"]
        assert state["policy"] == "cdsp-late"
        assert set(state["latency_model"]["sp"]) == {"1", "2", "4"}
        assert state["free_tokens"] == INSTANCE_TOKENS


def test_several_prompts_mid_prefill_at_once(
    client: Client, checkpoint: Path, plan_log: Path
) -> None:
    """Chunks of two long prompts on disjoint groups and short ones overlap in time."""
    seen = len(logged(plan_log))
    long_plans = [[(3000, [0]), (3000, [0, 1])], [(3000, [2]), (3000, [2, 3])]]
    with ThreadPoolExecutor(8) as threads:
        jobs = [
            threads.submit(client.pool, text_tokens(checkpoint, 6000, seed), plan)
            for seed, plan in enumerate(long_plans)
        ]
        jobs += [
            threads.submit(client.pool, text_tokens(checkpoint, 200, seed)) for seed in range(4)
        ]
        for job in jobs:
            job.result()
    entries = wait_logged(plan_log, seen + 6)[seen:]
    longs = [entry for entry in entries if entry["prompt_tokens"] == 6000]
    assert len(longs) == 2
    assert all(entry["outcome"] == "finished" for entry in entries)
    first, second = ([span(e, c) for c in e["chunks"]] for e in longs)
    assert any(a0 < b1 and b0 < a1 for a0, a1 in first for b0, b1 in second)
    used = [{i for c in e["chunks"] for i in c["instances"]} for e in longs]
    assert not used[0] & used[1]


def span(entry: dict[str, Any], chunk: dict[str, Any]) -> tuple[float, float]:
    return entry["arrival_s"] + chunk["start_s"], entry["arrival_s"] + chunk["end_s"]


def wait_logged(plan_log: Path, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 20
    while len(logged(plan_log)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return logged(plan_log)


def test_plan_log_tells_plan_and_times(client: Client, checkpoint: Path, plan_log: Path) -> None:
    seen = len(logged(plan_log))
    client.pool(text_tokens(checkpoint, 600, 3), [(200, [1]), (400, [1, 3, 0])])
    (entry,) = wait_logged(plan_log, seen + 1)[seen:]
    assert entry["outcome"] == "finished"
    assert entry["policy"] == "request"
    assert [(c["tokens"], c["instances"]) for c in entry["chunks"]] == [
        (200, [1]),
        (400, [1, 3, 0]),
    ]
    for chunk in entry["chunks"]:
        assert 0 <= chunk["start_s"] < chunk["end_s"]
        assert chunk["planned_start_s"] < chunk["planned_end_s"]
    assert entry["ttft_s"]["measured"] > 0
    assert entry["ttft_s"]["predicted"] > 0


def test_a_hundred_requests_leave_no_slot_behind(client: Client, checkpoint: Path) -> None:
    at_start = client.wait_free([INSTANCE_TOKENS] * POOL_SIZE)
    assert at_start == [INSTANCE_TOKENS] * POOL_SIZE
    rng = random.Random(20261121)

    def one(index: int) -> None:
        length = rng.choice((1, 7, 60, 130, 400, 900))
        plan = None
        if index % 3 == 0 and length > 2:
            group = rng.sample(range(POOL_SIZE), rng.randint(2, POOL_SIZE))
            plan = [(length // 2, group[:1]), (length - length // 2, group)]
        answer = client.pool(
            text_tokens(checkpoint, length, index), plan, sampling_params={"max_new_tokens": 2}
        )
        assert len(answer.tokens) == 2

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(100)))
    assert client.wait_free(at_start) == at_start


def test_a_bad_plan_is_refused_with_the_remedy(client: Client, checkpoint: Path) -> None:
    prompt = text_tokens(checkpoint, 50, 1)
    for plan, words in (
        ([(49, [0])], "the prompt has 50"),
        ([(50, [9])], "not in the pool"),
        ([(25, [0]), (25, [1])], "does not start with"),
        ("all of it", "must have the form"),
    ):
        response = client.prefill(prompt, sampling_params={"custom_params": {"cdsp_plan": plan}})
        assert response.status_code == 400, response.text
        assert words in response.text
    assert client.prefill(prompt).status_code == 200


def test_a_prompt_over_the_pools_limit_is_refused(client: Client) -> None:
    response = client.prefill([5] * 40_970)
    assert response.status_code == 400
    assert "token" in response.text


def test_openai_client_streams(client: Client, servers: Any) -> None:
    body: dict[str, Any] = {
        "model": "any",
        "prompt": "The import system " * 120,
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
    }
    url = f"{servers.url}/v1/completions"
    with requests.post(url, json=body, stream=True, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line.startswith(b"data:")]
    assert lines[-1] == b"data: [DONE]"
    assert len(lines) > 3
