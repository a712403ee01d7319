"""A controller that stands still ends the server, unless that was announced; nobody is orphaned."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from sglang_cdsp.launch.controller_watch import LIMIT_VAR
from sglang_cdsp.stack.processes import ServerGroup
from sglang_cdsp.testing.stack import RunningStack, prefill_only, running
from tests.serving.client import Client, text_tokens
from tests.serving.processes import controller_of, family_of, left_of, until

LIMIT_S = 3.0
FLAGS = ("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans")


@pytest.fixture(scope="module")
def stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A pool whose controller may stand still for 3 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIMIT_VAR, str(LIMIT_S))
        plan = prefill_only(checkpoint, flags=FLAGS)
        with running(plan, tmp_path_factory.mktemp("logs")) as stack:
            yield stack


def announce(stack: RunningStack, seconds: float) -> None:
    url = f"{stack.urls['prefill']}/cdsp/announce_stop"
    requests.post(url, json={"seconds": seconds}, timeout=30).raise_for_status()


def stand_still(processes: list[psutil.Process], seconds: float) -> None:
    for process in processes:
        process.suspend()
    time.sleep(seconds)
    for process in processes:
        process.resume()


def test_an_announced_stop_costs_nothing(stack: RunningStack, checkpoint: Path) -> None:
    client, tokens = Client(stack), text_tokens(checkpoint, 300, 1)
    server = psutil.Process(stack.servers["prefill"].pid)
    announce(stack, 600.0)
    with ThreadPoolExecutor(1) as threads:
        controller_of(stack.servers["prefill"]).suspend()
        job = threads.submit(client.prefill, tokens)
        stand_still(server.children(recursive=True), 2.5 * LIMIT_S)
        assert job.result().status_code == 200
    announce(stack, 0.0)
    assert client.prefill(tokens).status_code == 200


def test_a_stop_of_the_whole_server_costs_nothing(stack: RunningStack, checkpoint: Path) -> None:
    """The launching process does not take its own stop for the controller's."""
    server = stack.servers["prefill"]
    first, *others = family_of(server)
    for process in others:
        process.suspend()
    stand_still([first], 2.5 * LIMIT_S)
    for process in others:
        process.resume()
    assert Client(stack).prefill(text_tokens(checkpoint, 300, 2)).status_code == 200


def test_a_frozen_controller_ends_the_server_and_every_request(
    stack: RunningStack, checkpoint: Path
) -> None:
    server, client = stack.servers["prefill"], Client(stack)
    processes, controller = family_of(server), controller_of(server)
    tokens = text_tokens(checkpoint, 300, 3)
    with ThreadPoolExecutor(3) as threads:
        controller.suspend()
        jobs = [threads.submit(client.prefill, tokens) for _ in range(3)]
        for job in jobs:
            with pytest.raises(requests.ConnectionError):
                job.result()
    assert left_of(processes) == []
    log = server.log.read_text(errors="replace")
    said = f"the pool controller (pid {controller.pid}) has stood still for {LIMIT_S:g} s"
    assert log.count(said) == 1
    assert "it is stopped" in log


def test_a_server_whose_first_process_is_killed_while_it_starts_leaves_nobody(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Its schedulers have not asked the kernel yet to end them with their parent.

    Nor has SGLang's detokenizer, which asks without looking whether it is too late: it is not ours.
    """
    (command,) = prefill_only(checkpoint, flags=FLAGS).commands
    with ServerGroup() as group:
        server = group.start(command, tmp_path / "prefill.log")
        first = psutil.Process(server.pid)

        def pool() -> list[psutil.Process]:
            """The controller and two schedulers, or nothing while they are not there yet."""
            for process in spawned(first):
                if len(schedulers := spawned(process)) == 2:
                    return [process, *schedulers]
            return []

        assert until(pool, 120.0)
        processes = pool()
        first.kill()
        assert left_of(processes, 120.0) == []


def spawned(process: psutil.Process) -> list[psutil.Process]:
    """Children of a process that are none of `multiprocessing`'s own helpers."""
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
    return found
