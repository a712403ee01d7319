"""A fault costs the requests that it hits; schedulers that are lost come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from sglang_cdsp.engine.faults import ENV_VAR
from sglang_cdsp.testing.stack import RunningStack, prefill_only, running
from tests.serving.client import Client, text_tokens

FAULTY_LENGTH = 777
HEALTH_LIMIT_S = 3
LONG_CHUNK_S = 8.0
WITHIN_S = 240.0


@pytest.fixture(scope="module")
def stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A pool of two whose instance 1 fails in chunk 1 of prompts of one length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_VAR, f"1:1:{FAULTY_LENGTH}")
        patch.setenv("SGLANG_HEALTH_CHECK_TIMEOUT", str(HEALTH_LIMIT_S))
        flags = ("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans", "--cdsp-policy", "cdsp")
        with running(
            prefill_only(checkpoint, flags=flags), tmp_path_factory.mktemp("logs")
        ) as stack:
            yield stack


def test_the_policy_of_the_flag_plans(stack: RunningStack, checkpoint: Path) -> None:
    client = Client(stack)
    assert {state["policy"] for state in client.pool_states()} == {"cdsp"}
    for length in (1, 300, 5000):
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


def until(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached()


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


def test_a_pool_whose_schedulers_are_all_lost_answers_503_and_comes_back(
    stack: RunningStack, checkpoint: Path
) -> None:
    url = stack.urls["prefill"]

    def seats() -> list[str]:
        status = requests.get(f"{url}/cdsp/status", timeout=60).json()
        return [seat["state"] for seat in status["seats"]]

    assert until(lambda: seats() == ["up", "up"])
    for victim in schedulers(stack):
        victim.kill()
    assert until(lambda: "up" not in seats())
    assert requests.get(f"{url}/health", timeout=60).status_code == 503
    assert until(lambda: seats() == ["up", "up"])
    assert requests.get(f"{url}/health", timeout=60).status_code == 200
    assert Client(stack).prefill(text_tokens(checkpoint, 500, 4)).status_code == 200
