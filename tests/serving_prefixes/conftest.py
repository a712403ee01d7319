"""A pool that reuses prefixes before a stock decode server, which does so too or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cdsp.engine.faults import SHAKE_VAR
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running, single, together
from tests.serving_prefixes.client import ReusingClient

POOL_SIZE = 4
INSTANCE_TOKENS = 12_288
CONTEXT_LENGTH = 40_960
DECODE_REUSES = "--disaggregation-decode-enable-radix-cache"


@pytest.fixture(scope="package")
def plan_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pool logs its plans."""
    return tmp_path_factory.mktemp("plans") / "plans.jsonl"


@pytest.fixture(scope="package", params=[False, True], ids=["plain", "radix"])
def decode_reuses(request: pytest.FixtureRequest) -> bool:
    """Whether the decode server has a prefix cache of its own."""
    return bool(request.param)


@pytest.fixture(scope="package")
def servers(
    decode_reuses: bool,
    checkpoint: Path,
    plan_log: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningStack]:
    """Pool, decode server and router, and a stock server with the same checkpoint beside them.

    The pool is shaken: chunks switch at every point at which they may, in a drawn order.
    """
    seed = os.environ.get(SHAKE_VAR) or str(random.SystemRandom().randrange(1 << 31))
    print(f"\nthe pool is shaken: {SHAKE_VAR}={seed}")
    common = ("--context-length", str(CONTEXT_LENGTH), "--enable-cache-report")
    pool = disaggregated(
        checkpoint,
        prefill_flags=(
            *("--cdsp", "--dp-size", str(POOL_SIZE), "--cdsp-prefix-cache"),
            *("--cdsp-allow-request-plans", "--cdsp-plan-log", str(plan_log)),
            *("--max-total-tokens", str(INSTANCE_TOKENS)),
        ),
        decode_flags=(DECODE_REUSES,) if decode_reuses else (),
        flags=common,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHAKE_VAR, seed)
        plan = together(pool, single(checkpoint, flags=common))
        with running(plan, tmp_path_factory.mktemp("logs"), grace_s=10.0) as stack:
            yield stack


@pytest.fixture(scope="package")
def client(decode_reuses: bool, servers: RunningStack) -> ReusingClient:
    """Talks to the pool through the router, and to the stock server."""
    return ReusingClient(servers, decode_reuses=decode_reuses)
