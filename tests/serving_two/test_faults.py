"""A fault costs the requests that it hits; schedulers that are lost come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from sglang_cdsp.testing.stack import RunningStack
from tests.serving.asking import until
from tests.serving.client import Client, text_tokens
from tests.serving_seats.seats import until_up
from tests.serving_two.conftest import FAULTY_LENGTH, HEALTH_LIMIT_S, POLICY

LONG_CHUNK_S = 5.0 + HEALTH_LIMIT_S


def test_the_policy_of_the_flag_plans(stack: RunningStack, checkpoint: Path) -> None:
    client = Client(stack)
    assert {state["policy"] for state in client.pool_states()} == {POLICY}
    for length in (1, 300, 900):
        assert client.prefill(text_tokens(checkpoint, length, 2)).status_code == 200


def test_an_exception_inside_a_chunk_fails_only_its_request(
    stack: RunningStack, checkpoint: Path
) -> None:
    client = Client(stack)
    free = client.free_tokens()
    plan = {"custom_params": {"cdsp_plan": [(400, [0]), (FAULTY_LENGTH - 400, [0, 1])]}}
    right = {"custom_params": {"cdsp_plan": [(400, [0]), (FAULTY_LENGTH - 401, [0, 1])]}}
    for _ in range(3):
        response = client.prefill(text_tokens(checkpoint, FAULTY_LENGTH, 1), sampling_params=plan)
        assert response.status_code == 500, response.text
        assert "chunk 1 failed on instance" in response.text
        response = client.prefill(
            text_tokens(checkpoint, FAULTY_LENGTH - 1, 1), sampling_params=right
        )
        assert response.status_code == 200, response.text
    assert client.wait_free(free) == free


def schedulers(stack: RunningStack) -> list[psutil.Process]:
    """The schedulers of the pool."""
    server = psutil.Process(stack.servers["prefill"].pid)
    found = server.children(recursive=True)
    return [process for process in found if "scheduler" in " ".join(process.cmdline())]


def test_health_during_a_long_chunk_and_when_stopped(stack: RunningStack, checkpoint: Path) -> None:
    """One chunk takes longer than `/health` waits for an answer of a scheduler.

    A scheduler that is stopped is given up with what it runs, and the others go on.
    """
    client, url = Client(stack), stack.urls["prefill"]
    plan = {"custom_params": {"cdsp_plan": [(600, [0, 1])]}}

    def health() -> int:
        return requests.get(f"{url}/health", timeout=60).status_code

    def slow_down(seconds: float) -> None:
        body = {"forward_sleep_time": seconds}
        requests.post(f"{url}/slow_down", json=body, timeout=60).raise_for_status()

    def running() -> bool:
        # Home says so when the chunk starts.
        loads = requests.get(f"{url}/v1/loads", timeout=60).json()["loads"]
        return any(load["num_running_reqs"] for load in loads)

    slow_down(LONG_CHUNK_S)
    victim = schedulers(stack)[-1]
    with ThreadPoolExecutor(1) as threads:
        tokens = text_tokens(checkpoint, 600, 3)
        job = threads.submit(client.prefill, tokens, sampling_params=plan)
        assert until(running)
        assert health() == 200
        assert not job.done(), "the chunk was too short to tell"
        victim.suspend()
        answer = job.result()
    assert answer.status_code == 503, answer.text
    assert "was stopped" in answer.text
    slow_down(0.0)
    assert health() == 200, "the other one answers"
    assert until(lambda: not victim.is_running()), "it is killed, not left to wake up"
    until_up(client)
