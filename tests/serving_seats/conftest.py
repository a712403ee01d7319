"""A small pool with decode and a stock server beside it, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cdsp.testing.stack import RunningStack, disaggregated, running, single, together
from tests.serving.client import Client

FLAGS = ("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans")
CONTEXT = ("--context-length", "8192")


@pytest.fixture(scope="package")
def plan_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pool logs its plans, and what happens to its seats."""
    return tmp_path_factory.mktemp("plans") / "plans.jsonl"


@pytest.fixture(scope="package")
def servers(
    checkpoint: Path, plan_log: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    """The servers."""
    pool = disaggregated(
        checkpoint, prefill_flags=(*FLAGS, "--cdsp-plan-log", str(plan_log)), flags=CONTEXT
    )
    stock = single(checkpoint, flags=CONTEXT)
    with running(together(pool, stock), tmp_path_factory.mktemp("logs")) as stack:
        yield stack


@pytest.fixture(scope="package")
def client(servers: RunningStack) -> Client:
    """Talks to the pool through the router, and to the stock server."""
    return Client(servers)
