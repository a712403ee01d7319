"""SGLang's own numbers of a pool: gauges, counters and ``/v1/loads``, which routers read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.asking import in_hand, loads, until
from tests.serving.client import Client, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE

TOKENS = "sglang:realtime_tokens_total"
QUEUE_TIME = "sglang:queue_time_seconds_sum"
RUNNING = "sglang:num_running_reqs"


def metric(client: Client, name: str, **labels: str) -> float:
    """The sum of a metric over all ranks and other labels."""
    text = requests.get(f"{client.servers.urls['prefill']}/metrics", timeout=10).text
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    fitting = (s for s in samples if s.name == name and labels.items() <= s.labels.items())
    return sum(sample.value for sample in fitting)


def test_loads_are_those_of_one_replica(client: Client) -> None:
    url = f"{client.servers.urls['prefill']}/v1/loads"
    answer, first, second = (
        requests.get(url + query, timeout=10).json() for query in ("", "?dp_rank=0", "?dp_rank=1")
    )
    assert answer["num_accelerators"] == POOL_SIZE
    assert [load["dp_rank"] for load in answer["loads"]] == [0]
    assert [load["dp_rank"] for load in first["loads"]] == [0]
    assert second["loads"] == []


def test_prefilled_tokens_are_counted_wherever_they_were_computed(
    client: Client, checkpoint: Path
) -> None:
    before = metric(client, TOKENS, mode="prefill_compute")
    client.pool(text_tokens(checkpoint, 3000, 81), [(1000, [0]), (2000, [0, 1, 3])])
    client.pool(text_tokens(checkpoint, 300, 82), [(300, [2])])
    expected = before + 3300
    assert until(lambda: metric(client, TOKENS, mode="prefill_compute") >= expected)
    assert metric(client, TOKENS, mode="prefill_compute") == expected


def test_queue_times_are_times_in_a_queue(client: Client, checkpoint: Path) -> None:
    before, start_s = metric(client, QUEUE_TIME), time.monotonic()
    client.pool(text_tokens(checkpoint, 2000, 83), [(1000, [1]), (1000, [1, 2])])
    client.pool(text_tokens(checkpoint, 200, 84), [(200, [1])])
    waited_s = metric(client, QUEUE_TIME) - before
    assert 0 <= waited_s <= 2 * (time.monotonic() - start_s)


def test_a_busy_pool_says_so_and_an_idle_one_too(client: Client, checkpoint: Path) -> None:
    prompt = text_tokens(checkpoint, 6000, 85)
    (idle,) = loads(client)
    assert (idle["dp_rank"], idle["max_total_num_tokens"]) == (0, POOL_SIZE * INSTANCE_TOKENS)
    assert until(lambda: in_hand(client) == 0)
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(client.pool, prompt) for _ in range(4)]
        assert until(lambda: in_hand(client) >= 2)
        assert until(lambda: metric(client, RUNNING) >= 1)
        for job in jobs:
            job.result()
    assert until(lambda: in_hand(client) == 0)
    assert until(lambda: metric(client, RUNNING) == 0)


def test_a_profile_of_chunks_ends(client: Client, checkpoint: Path, tmp_path: Path) -> None:
    """It counts forwards: chunks are among them, though SGLang does not run them."""
    url = client.servers.urls["prefill"]
    body: dict[str, Any] = {"output_dir": str(tmp_path), "num_steps": 2, "activities": ["CPU"]}
    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(requests.post, f"{url}/start_profile", json=body, timeout=60)
        for seed in range(3):
            plan = [(100, [0, 1, 2, 3]), (100, [0, 1, 2, 3])]
            client.pool(text_tokens(checkpoint, 200, 90 + seed), plan)
        assert job.result().status_code == 200
    assert until(lambda: len(list(tmp_path.rglob("*.json.gz"))) == POOL_SIZE)
