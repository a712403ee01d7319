"""Two instances of two ranks each, and a decode server of two ranks that holds less than they."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from sglang_cdsp.engine.faults import ENV_VAR
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running
from tests.serving.client import Client

FAULTY_LENGTH = 777
INSTANCE_TOKENS = 8192
DECODE_TOKENS = 4096


@pytest.fixture(scope="package")
def stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The servers; instance 1 fails in chunk 1 of prompts of one length."""
    plan = disaggregated(
        checkpoint,
        prefill_flags=(
            *("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans"),
            *("--cdsp-policy", "loongserve", "--max-total-tokens", str(INSTANCE_TOKENS)),
        ),
        decode_flags=("--max-total-tokens", str(DECODE_TOKENS)),
        flags=("--tp-size", "2"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_VAR, f"1:1:{FAULTY_LENGTH}")
        # Six ranks that meet for the first time keep two cores busy for longer than decode's
        # patience with a prefill server that does not answer its heartbeats.
        patch.setenv("SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE", "20")
        with running(plan, tmp_path_factory.mktemp("logs")) as stack:
            yield stack


@dataclass(frozen=True)
class Timed:
    """An answer and how long it took."""

    response: requests.Response
    seconds: float


def timed(client: Client, tokens: list[int]) -> Timed:
    """Ask the pool through the router."""
    start_s = time.monotonic()
    response = client.generate(client.servers.url, tokens)
    return Timed(response, time.monotonic() - start_s)


@pytest.fixture(scope="package")
def very_first(stack: RunningStack) -> Timed:
    """The answer to the servers' first request of all, which decode cannot hold."""
    return timed(Client(stack), [5] * (DECODE_TOKENS + 100))


@pytest.fixture(scope="package")
def client(stack: RunningStack, very_first: Timed) -> Client:
    """Talks to the pool through the router."""
    return Client(stack)
