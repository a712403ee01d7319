# ruff: noqa: F401 - fixtures and tests that run here
"""Every request ends: refused, aborted or failed, with a reason, and it leaves nothing behind."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.serving.asking import REFUSED_WITHIN_S
from tests.serving.client import Client, text_tokens
from tests.serving.shared.ends import (
    nothing_left_and_still_right,
    test_abort_all,
    test_abort_by_rid_at_any_moment,
    test_clients_that_disconnect,
)


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
