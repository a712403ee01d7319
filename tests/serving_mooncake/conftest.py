"""A pool, a stock decode server and a router over Mooncake (TCP), and a stock server beside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_cdsp.engine import faults
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running, single, together
from tests.serving.client import Client

POOL_SIZE = 3
INSTANCE_TOKENS = 8192
DECODE_TOKENS = 8000
FAULTY_LENGTH = 777
PATIENCE_S = 8
# TCP, which gives a transfer up that makes no progress for so long (Mooncake's default is 30 s);
# and instance 1 fails in chunk 1 of prompts of one length.
ENVIRONMENT = {
    "MOONCAKE_PROTOCOL": "tcp",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": str(PATIENCE_S),
    faults.ENV_VAR: f"1:1:{FAULTY_LENGTH}",
}


@pytest.fixture(scope="session")
def mooncake() -> None:
    """Skip where Mooncake cannot be loaded."""
    found = subprocess.run(
        [sys.executable, "-c", "import mooncake.engine"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1]
        pytest.skip(f"{reason}: run `make mooncake` (libraries: requirements/mooncake.txt)")


@pytest.fixture(scope="package")
def servers(
    mooncake: None, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Three instances with decode and router, all stock but the pool."""
    pool = disaggregated(
        checkpoint,
        prefill_flags=(
            *("--cdsp", "--dp-size", str(POOL_SIZE), "--cdsp-allow-request-plans"),
            *("--max-total-tokens", str(INSTANCE_TOKENS)),
            *("--cdsp-decode-max-total-tokens", str(DECODE_TOKENS)),
        ),
        decode_flags=("--max-total-tokens", str(DECODE_TOKENS)),
        flags=("--disaggregation-transfer-backend", "mooncake"),
    )
    commands = tuple(
        replace(command, environment={**command.environment, **ENVIRONMENT})
        for command in pool.commands
    )
    plan = together(replace(pool, commands=commands), single(checkpoint))
    with running(plan, tmp_path_factory.mktemp("logs")) as stack:
        yield stack


@pytest.fixture(scope="package")
def client(servers: RunningStack) -> Client:
    """Talks to the pool through the router, and to the stock server."""
    return Client(servers)
