"""A short storm on the session's servers; ``bench/servers/storm.py`` runs long ones."""

from __future__ import annotations

from bench.servers.storm import storm
from tests.serving.client import Client
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE


def test_a_storm_leaves_nothing_behind(client: Client) -> None:
    assert client.wait_free([INSTANCE_TOKENS] * POOL_SIZE) == [INSTANCE_TOKENS] * POOL_SIZE
    wrong = storm(client.servers, count=60, abort_share=0.3, seed=20261121, at_once=6)
    assert not wrong, "\n".join(wrong)
