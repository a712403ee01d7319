"""One server of two instances that retracts now and then, and a stock one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_cdsp.testing.stack import RunningStack, one_server, running, single, together
from tests.serving_unified.client import OneServerClient

CONTEXT = ("--context-length", "8192")
SLOTS = 40_000
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "11"}
"""SGLang's own switch: every eleventh step an instance retracts all requests but one.

The stock server is asked for one answer at a time, and retracts nobody.
"""


@pytest.fixture(scope="package")
def servers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The servers."""
    pool = one_server(
        checkpoint,
        flags=(
            *CONTEXT,
            *("--dp-size", "2", "--cdsp-allow-request-plans"),
            *("--max-total-tokens", str(SLOTS)),
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RETRACT.items():
            patch.setenv(name, value)
        plan = together(pool, single(checkpoint, flags=CONTEXT))
        with running(plan, tmp_path_factory.mktemp("logs")) as stack:
            url = stack.urls["pool"]
            servers = {**stack.servers, "prefill": stack.servers["pool"]}
            yield replace(
                stack, urls={**stack.urls, "router": url, "prefill": url}, servers=servers
            )


@pytest.fixture(scope="package")
def client(servers: RunningStack) -> OneServerClient:
    """Talks to the pool and to the stock server."""
    return OneServerClient(servers)
