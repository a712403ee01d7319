"""Stock decode before a pool dies, freezes and comes back; in the end the controller is killed.

A fault costs at most the requests that it meets: every client is answered, rightly or with an
error, slots come back, and what is sent afterwards is answered.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cdsp.stack import reaper
from sglang_cdsp.testing.answers import Answer
from sglang_cdsp.testing.stack import Deployment, RunningStack, disaggregated, running
from tests.serving.client import Client, difference, read, text_tokens
from tests.serving.processes import controller_of, family_of, left_of, until

TOLERANCE = 1e-3
LENGTHS = (40, 300, 1500, 2500, 900, 60)
SLOW_S = 1.0
FROZEN_S = 6.0
DECODE_FLAGS = ("--max-total-tokens", "20000")


class Decode:
    """The decode server, which a test may start anew with the same command line."""

    def __init__(self, plan: Deployment, logs: Path) -> None:
        self._plan, self._logs = plan, logs
        self._starts = 0
        self._stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        self._starts += 1
        context = running(self._plan, self._logs / f"decode-{self._starts}")
        self.server = self._stack.enter_context(context).servers["decode"]

    def kill(self) -> None:
        """All at once, as when its machine has lost power, but for the connections."""
        reaper.kill_sessions({self.server.pid})
        self.end()

    def end(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> Deployment:
    return disaggregated(
        checkpoint,
        prefill_flags=("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans"),
        decode_flags=DECODE_FLAGS,
    )


@pytest.fixture(scope="module")
def pool(plan: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A pool of two and the router."""
    commands = tuple(command for command in plan.commands if command.name != "decode")
    with running(replace(plan, commands=commands), tmp_path_factory.mktemp("pool")) as stack:
        yield stack


@pytest.fixture(scope="module")
def decode(
    plan: Deployment, pool: RunningStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Decode]:
    commands = tuple(command for command in plan.commands if command.name == "decode")
    made = Decode(replace(plan, commands=commands), tmp_path_factory.mktemp("decode"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def client(pool: RunningStack, decode: Decode) -> Client:
    return Client(pool)


@pytest.fixture(scope="module")
def prompts(checkpoint: Path) -> list[list[int]]:
    return [text_tokens(checkpoint, length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def right(client: Client, prompts: Sequence[list[int]]) -> list[Answer]:
    """What each prompt is answered while all is well."""
    return [client.pool(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def free(right: list[Answer], client: Client) -> list[int]:
    """The slots of an idle pool."""
    return client.free_tokens()


def slow_down(client: Client, seconds: float) -> None:
    """Let every chunk and batch of the pool begin so much later."""
    url = f"{client.servers.urls['prefill']}/slow_down"
    requests.post(url, json={"forward_sleep_time": seconds}, timeout=60).raise_for_status()


def status(client: Client) -> dict[str, Any]:
    url = f"{client.servers.urls['prefill']}/cdsp/status"
    found: dict[str, Any] = requests.get(url, timeout=30).json()
    return found


def asked(client: Client, tokens: Sequence[int]) -> Answer | str:
    """The answer through the router, or how it failed; a client that hears nothing is a fault."""
    try:
        response = client.generate(client.servers.url, tokens)
    except requests.Timeout:
        raise
    except requests.RequestException as error:
        return repr(error)
    return read(response) if response.status_code == 200 else response.text


@contextlib.contextmanager
def under_way(
    client: Client, prompts: Sequence[Sequence[int]]
) -> Iterator[list[Future[Answer | str]]]:
    """All prompts sent, all known to the pool, and none done yet."""
    slow_down(client, SLOW_S)
    with ThreadPoolExecutor(len(prompts)) as threads:
        jobs = [threads.submit(asked, client, prompt) for prompt in prompts]
        assert until(lambda: status(client)["requests"] >= len(prompts) - 2)
        yield jobs


def compare(right: Sequence[Answer], found: Sequence[Answer | str]) -> int:
    """How many were answered; those must be right."""
    answered = [(good, one) for good, one in zip(right, found, strict=True) if not_text(one)]
    for good, one in answered:
        assert isinstance(one, Answer)
        difference(good, one, TOLERANCE)
    return len(answered)


def not_text(found: Answer | str) -> bool:
    return isinstance(found, Answer)


def test_a_killed_decode_server_costs_its_requests(
    client: Client,
    decode: Decode,
    prompts: list[list[int]],
    right: list[Answer],
    free: list[int],
) -> None:
    with under_way(client, prompts) as jobs:
        decode.kill()
        found = [job.result() for job in jobs]
    slow_down(client, 0.0)
    assert compare(right, found) < len(prompts), "it was killed too late to tell"
    assert client.wait_free(free, timeout_s=60) == free
    assert until(lambda: status(client)["decode"]["ranks"] == 0)
    assert client.prefill(prompts[2]).status_code == 200, "the pool itself goes on"


def test_it_is_taken_again_at_the_same_address(
    client: Client,
    decode: Decode,
    prompts: list[list[int]],
    right: list[Answer],
    free: list[int],
) -> None:
    decode.start()
    assert compare(right, [asked(client, prompt) for prompt in prompts]) == len(prompts)
    assert status(client)["decode"]["ranks"] == 1
    assert client.wait_free(free) == free


def test_one_that_is_killed_and_started_while_requests_keep_coming(
    client: Client,
    decode: Decode,
    prompts: list[list[int]],
    right: list[Answer],
    free: list[int],
) -> None:
    with ThreadPoolExecutor(3) as threads:
        early = [threads.submit(asked, client, prompt) for prompt in prompts]
        decode.kill()
        late = [threads.submit(asked, client, prompt) for prompt in prompts]
        decode.start()
        compare(right, [job.result() for job in early])
        compare(right, [job.result() for job in late])
    assert compare(right, [asked(client, prompt) for prompt in prompts]) == len(prompts)
    assert client.wait_free(free, timeout_s=60) == free


def test_a_frozen_decode_server_is_used_again_when_it_goes_on(
    client: Client,
    decode: Decode,
    prompts: list[list[int]],
    right: list[Answer],
    free: list[int],
) -> None:
    frozen = family_of(decode.server)
    with under_way(client, prompts) as jobs:
        for process in frozen:
            process.suspend()
        try:
            slow_down(client, 0.0)
            alone = client.prefill(prompts[0])
            time.sleep(FROZEN_S)
        finally:
            for process in frozen:
                process.resume()
        compare(right, [job.result() for job in jobs])
    assert alone.status_code == 200, "who needs no decode server goes on meanwhile"
    assert compare(right, [asked(client, prompt) for prompt in prompts]) == len(prompts)
    assert client.wait_free(free, timeout_s=60) == free


def test_a_killed_controller_ends_the_server_and_every_request(
    client: Client, decode: Decode, pool: RunningStack, prompts: list[list[int]], free: list[int]
) -> None:
    server = pool.servers["prefill"]
    processes, controller = family_of(server), controller_of(server)
    assert len(processes) >= 5, "launching process, controller, two schedulers, detokenizer"
    with under_way(client, prompts) as jobs:
        controller.kill()
        found = [job.result() for job in jobs]
    assert not any(not_text(one) for one in found)
    assert left_of(processes) == []
    log = server.log.read_text(errors="replace")
    ours = f"the pool controller (pid {controller.pid}) was killed by signal 9"
    # SGLang's own watchdog looks once a second, and may be the first to see it.
    stocks = f"(pid={controller.pid}) crashed with exit code -9"
    assert log.count(ours) <= 1
    assert ours in log or stocks in log
