"""A pool of two instances with decode and router, and a stock server beside them.

Files run in the order of their names: what disturbs the servers and mends them again first, and
last the faults, of which one ends the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cdsp.engine.faults import ENV_VAR
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running, single, together
from tests.serving.client import Client

POOL_SIZE = 2
CONTEXT_LENGTH = 1000
# An instance holds less than the context, and the longest forced plan of one instance.
INSTANCE_TOKENS = 800
POLICY = "cdsp"
FAULTY_LENGTH = 777
HEALTH_LIMIT_S = 3
ENVIRONMENT = {
    "DUMPER_SERVER_PORT": "reuse",
    # Instance 1 fails in chunk 1 of prompts of one length.
    ENV_VAR: f"1:1:{FAULTY_LENGTH}",
    "SGLANG_HEALTH_CHECK_TIMEOUT": str(HEALTH_LIMIT_S),
}


@pytest.fixture(scope="package")
def stack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The servers."""
    common = ("--context-length", str(CONTEXT_LENGTH))
    pool = disaggregated(
        checkpoint,
        prefill_flags=(
            *("--cdsp", "--dp-size", str(POOL_SIZE), "--cdsp-allow-request-plans"),
            *("--cdsp-policy", POLICY, "--max-total-tokens", str(INSTANCE_TOKENS)),
        ),
        flags=common,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        plan = together(pool, single(checkpoint, flags=common))
        with running(plan, tmp_path_factory.mktemp("logs")) as stack:
            yield stack


@pytest.fixture(scope="package")
def client(stack: RunningStack) -> Client:
    """Talks to the pool through the router, and to the stock server."""
    return Client(stack)
