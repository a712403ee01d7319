"""Two instances of two ranks each that reuse prefixes, before a decode server of two ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cdsp.testing.stack import disaggregated, running
from tests.serving_prefixes.client import ReusingClient

INSTANCE_TOKENS = 8192


@pytest.fixture(scope="package")
def client(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReusingClient]:
    """Talks to the pool through the router."""
    plan = disaggregated(
        checkpoint,
        prefill_flags=(
            *("--cdsp", "--dp-size", "2", "--cdsp-prefix-cache", "--cdsp-allow-request-plans"),
            *("--max-total-tokens", str(INSTANCE_TOKENS)),
        ),
        flags=("--tp-size", "2"),
    )
    with pytest.MonkeyPatch.context() as patch:
        # As in `serving_tp`: six ranks on two cores.
        patch.setenv("SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE", "20")
        with running(plan, tmp_path_factory.mktemp("logs")) as stack:
            yield ReusingClient(stack, decode_reuses=False)
