"""One server that prefills and decodes, and a stock one beside it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_cdsp.engine.faults import SHAKE_VAR
from sglang_cdsp.protocol.cache_digest import CACHES_VAR
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.testing.kv_events import EventPorts
from sglang_cdsp.testing.stack import RunningStack, one_server, running, single, together
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving_unified.client import OneServerClient

CONTEXT_LENGTH = 20_000
CORE_VAR = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"


@pytest.fixture(scope="package")
def plan_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pool logs its plans."""
    return tmp_path_factory.mktemp("plans") / "plans.jsonl"


@pytest.fixture(scope="package")
def ports() -> EventPorts:
    """Where the pool publishes its KV events."""
    return EventPorts(*free_ports(2))


@pytest.fixture(scope="package")
def stock_ports() -> EventPorts:
    """Where the stock server publishes its own."""
    return EventPorts(*free_ports(2))


@pytest.fixture(scope="package")
def servers(
    checkpoint: Path,
    plan_log: Path,
    ports: EventPorts,
    stock_ports: EventPorts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningStack]:
    """The pool, whose chunks switch at every point at which they may, and a stock server.

    The pool has SGLang's Python trees, which tests can walk; all other servers have its Rust ones.
    """
    seed = os.environ.get(SHAKE_VAR) or str(random.SystemRandom().randrange(1 << 31))
    print(f"\nthe pool is shaken: {SHAKE_VAR}={seed}")
    common = ("--context-length", str(CONTEXT_LENGTH), "--enable-custom-logit-processor")
    pool = one_server(
        checkpoint,
        flags=(
            *common,
            *("--dp-size", str(POOL_SIZE), "--cdsp-allow-request-plans"),
            *("--cdsp-plan-log", str(plan_log), "--max-total-tokens", str(INSTANCE_TOKENS)),
            *ports.flags,
        ),
        environment={CORE_VAR: "python", CACHES_VAR: "1"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHAKE_VAR, seed)
        plan = together(pool, single(checkpoint, flags=(*common, *stock_ports.flags)))
        with running(plan, tmp_path_factory.mktemp("logs")) as stack:
            # Tests of the form with decode servers ask its router and its prefill server.
            pool_url = stack.urls["pool"]
            urls = {**stack.urls, "router": pool_url, "prefill": pool_url}
            processes = {**stack.servers, "prefill": stack.servers["pool"]}
            yield replace(stack, urls=urls, servers=processes)


@pytest.fixture(scope="package")
def client(servers: RunningStack) -> OneServerClient:
    """Talks to the pool and to the stock server."""
    return OneServerClient(servers)
