"""A short storm on this folder's servers while seats turn; ``bench/servers/storm.py`` has more."""

from __future__ import annotations

from dataclasses import replace

from bench.servers.storm import storm
from bench.servers.storm_forms import one_server_form
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving_unified.client import OneServerClient

LONGEST = 2000


def test_a_storm_leaves_nothing_behind(client: OneServerClient) -> None:
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
    wrong = storm(
        client.servers,
        count=50,
        abort_share=0.3,
        seed=20261127,
        at_once=6,
        form=replace(one_server_form(INSTANCE_TOKENS), longest=LONGEST),
        turn_every_s=1.0,
    )
    assert not wrong, "\n".join(wrong)
