"""Every request ends: refused, aborted or failed, with a reason, and it leaves nothing behind."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.serving.asking import REFUSED_WITHIN_S
from tests.serving.client import Client, Plan, difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE

TOLERANCE = 1e-3
FREE = [INSTANCE_TOKENS] * POOL_SIZE
LONG_PLAN: Plan = [(2000, [0]), (2000, [0, 1]), (2000, [0, 1, 2]), (2000, [0, 1, 2, 3])]


@pytest.fixture(autouse=True)
def nothing_left_and_still_right(client: Client, checkpoint: Path) -> Iterator[None]:
    """After each test all slots are free and a new request gets stock's answer."""
    yield
    assert client.wait_free(FREE, timeout_s=15) == FREE
    prompt = text_tokens(checkpoint, 333, 9)
    plan = [(100, [3]), (233, [3, 0])]
    difference(client.stock(prompt), client.pool(prompt, plan), TOLERANCE)


def timed(client: Client, tokens: list[int], **fields: object) -> tuple[requests.Response, float]:
    start = time.monotonic()
    response = client.generate(client.servers.url, tokens, **fields)
    return response, time.monotonic() - start


def test_a_refused_plan_reaches_the_routers_client(client: Client, checkpoint: Path) -> None:
    sampling = {"custom_params": {"cdsp_plan": [(10, [0])]}}
    response, seconds = timed(client, text_tokens(checkpoint, 60, 2), sampling_params=sampling)
    assert response.status_code >= 400
    assert "the prompt has 60" in response.text
    assert seconds < REFUSED_WITHIN_S


def test_a_prompt_over_the_limit_reaches_the_routers_client(client: Client) -> None:
    response, seconds = timed(client, [5] * 40_970)
    assert response.status_code >= 400
    assert seconds < REFUSED_WITHIN_S


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_several_samples_are_refused_at_once(
    client: Client, checkpoint: Path, samples: int, stream: bool
) -> None:
    """A decode server sends all samples into the prompt's room: each must hear of its end.

    Those of a stream may have to wait for decode's own time-out, see ``DECODE_WAITS_S``.
    """
    prompt = text_tokens(checkpoint, 40, 2)
    direct = client.prefill(prompt, sampling_params={"n": samples})
    assert direct.status_code == 400
    assert f"n={samples}" in direct.text
    response, seconds = timed(client, prompt, sampling_params={"n": samples}, stream=stream)
    assert response.status_code >= 400 or f"n={samples}" in response.text
    assert stream or seconds < REFUSED_WITHIN_S


@pytest.mark.parametrize("late_s", [0.0, 0.4])
def test_two_requests_in_one_room_both_fail(
    client: Client, checkpoint: Path, late_s: float
) -> None:
    """Decode keeps its state by room, so both of its requests must hear of it together."""
    urls = client.servers.urls
    info = requests.get(f"{urls['prefill']}/server_info", timeout=30).json()
    shared = {
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": int(info["disaggregation_bootstrap_port"]),
        "bootstrap_room": random.Random(late_s).randrange(2**40),
    }

    def ask(job: tuple[str, int, float]) -> tuple[int, float]:
        name, seed, delay_s = job
        time.sleep(delay_s)
        start = time.monotonic()
        tokens = text_tokens(checkpoint, 700, seed)
        status = client.generate(urls[name], tokens, **shared).status_code
        return status, time.monotonic() - start

    # Decode is asked before prefill, so that neither request can be over before the other comes.
    jobs = [("decode", 1, 0.0), ("decode", 2, late_s), ("prefill", 1, 1.0), ("prefill", 2, 1.0)]
    with ThreadPoolExecutor(4) as threads:
        ends = list(threads.map(ask, jobs))
    # Decode's two may have to wait for its own time-out, see ``DECODE_WAITS_S``.
    assert all(status >= 400 for status, _ in ends), ends
    assert all(seconds < REFUSED_WITHIN_S for _, seconds in ends[2:]), ends


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
