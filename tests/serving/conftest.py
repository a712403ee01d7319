"""One set of real servers for all serving tests: pool, stock decode and router, and a stock one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cdsp.engine.faults import SHAKE_VAR
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running, single, together
from tests.serving.client import Client
from tests.serving.routers import patched_router, router_before, rust_router_before

POOL_SIZE = 4
# An instance holds fewer tokens than the longest prompt served: the pool must hold it together.
INSTANCE_TOKENS = 12_288
CONTEXT_LENGTH = 40_960
# SGLang waits for its requests, and for records of streamed samples (n > 1) that it never removes.
END_WITHIN_S = 10.0
DECODE_WAITS_S = 100
"""Stock decode's time-out for KV, seconds, shorter than its default and than a test's own patience.

Decode keeps a room's state by its number. Where two of a room's requests wait and the word that it
failed comes between their polls, the first to see it deletes it, and the other one waits for this
time-out (``tests/transfer/test_stock_room.py``; patch 0003 gives every sample a room of its own).
"""


@pytest.fixture(scope="package")
def plan_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pool logs its plans."""
    return tmp_path_factory.mktemp("plans") / "plans.jsonl"


@pytest.fixture(scope="package")
def servers(
    checkpoint: Path, plan_log: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """Pool with decode and router, and a stock server with the same checkpoint beside them.

    The pool is shaken: chunks switch at every point at which they may, in a drawn order.
    """
    seed = os.environ.get(SHAKE_VAR) or str(random.SystemRandom().randrange(1 << 31))
    print(f"\nthe pool is shaken: {SHAKE_VAR}={seed}")
    common = ("--context-length", str(CONTEXT_LENGTH), "--enable-custom-logit-processor")
    pool = disaggregated(
        checkpoint,
        prefill_flags=(
            *("--cdsp", "--dp-size", str(POOL_SIZE), "--cdsp-allow-request-plans"),
            *("--cdsp-plan-log", str(plan_log), "--max-total-tokens", str(INSTANCE_TOKENS)),
            "--enable-metrics",
        ),
        decode_flags=("--enable-metrics",),
        flags=common,
    )
    stock = single(checkpoint, flags=common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHAKE_VAR, seed)
        patch.setenv("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", str(DECODE_WAITS_S))
        plan, logs = together(pool, stock), tmp_path_factory.mktemp("logs")
        with running(plan, logs, grace_s=END_WITHIN_S) as stack:
            yield stack


@pytest.fixture(scope="package")
def client(servers: RunningStack) -> Client:
    """Talks to the pool through the router, and to the stock server."""
    return Client(servers)


@pytest.fixture(scope="package")
def patched(servers: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one more mini router, with the patches that are for it."""
    environment = patched_router(tmp_path_factory.mktemp("router"))
    logs = tmp_path_factory.mktemp("logs")
    with router_before(servers, logs, ("--mini-lb",), environment) as url:
        yield url


@pytest.fixture(scope="package")
def rust(servers: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the Rust router before the same servers."""
    with rust_router_before(servers, tmp_path_factory.mktemp("logs")) as url:
        yield url
