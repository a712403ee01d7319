"""Aborts at any moment and clients that leave: every request ends and leaves nothing behind."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.serving.client import Client, Plan, difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE

TOLERANCE = 1e-3
FREE = [INSTANCE_TOKENS] * POOL_SIZE
LONG_PLAN: Plan = [(2000, [0]), (2000, [0, 1]), (2000, [0, 1, 2]), (2000, [0, 1, 2, 3])]


@pytest.fixture(autouse=True)
def nothing_left_and_still_right(client: Client, checkpoint: Path) -> Iterator[None]:
    """After each test all slots are free and a new request gets stock's answer."""
    yield
    assert client.wait_free(FREE, timeout_s=60) == FREE
    prompt = text_tokens(checkpoint, 333, 9)
    plan = [(100, [3]), (233, [3, 0])]
    difference(client.stock(prompt), client.pool(prompt, plan), TOLERANCE)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3, 0.8, 1.5, 2.5])
def test_abort_by_rid_at_any_moment(delay_s: float, client: Client, checkpoint: Path) -> None:
    rid = f"abort-{delay_s}"
    sampling = {"custom_params": {"cdsp_plan": LONG_PLAN}, "max_new_tokens": 2}
    tokens = text_tokens(checkpoint, 8000, 3)

    def ask() -> requests.Response:
        return client.generate(client.servers.url, tokens, rid=rid, sampling_params=sampling)

    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(ask)
        time.sleep(delay_s)
        client.abort(rid)
        aborted_at = time.monotonic()
        response = job.result(timeout=30)
    assert time.monotonic() - aborted_at < 15
    assert response.status_code >= 400 or response.json()["meta_info"]["finish_reason"]


def test_clients_that_disconnect(client: Client, checkpoint: Path) -> None:
    rng = random.Random(11)
    plans: list[Plan | None] = [None, LONG_PLAN, [(8000, [3, 2])]]
    threads = []
    for index in range(6):
        plan = plans[index % 3]
        custom = {"custom_params": {"cdsp_plan": plan}} if plan else {}
        tokens = text_tokens(checkpoint, 8000, index)
        arguments = (tokens, 0.2 + rng.random() * 3)
        threads.append(
            threading.Thread(target=client.stream_and_leave, args=arguments, kwargs=custom)
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_abort_all(client: Client, checkpoint: Path) -> None:
    lengths = (50, 900, 3000, 8000, 8000)
    with ThreadPoolExecutor(len(lengths)) as threads:
        jobs = [
            threads.submit(
                client.generate,
                client.servers.url,
                text_tokens(checkpoint, length, seed),
                sampling_params={"max_new_tokens": 2},
            )
            for seed, length in enumerate(lengths)
        ]
        time.sleep(0.4)
        client.abort(everything=True)
        for job in jobs:
            job.result(timeout=60)
