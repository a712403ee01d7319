"""Limits that several sides check, on the boundary, one below and one above, beside stock.

A prompt that one side takes and another refuses has a client that waits for a time-out.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.serving.asking import REFUSED_WITHIN_S
from tests.serving.client import Client, difference, text_tokens
from tests.serving_two.conftest import CONTEXT_LENGTH, INSTANCE_TOKENS

# SGLang leaves a token for the answer and five more; the length that is left is the first refused.
REFUSED = CONTEXT_LENGTH - 6
TOLERANCE = 1e-3


@pytest.mark.parametrize("length", [REFUSED - 2, REFUSED - 1])
def test_the_longest_prompts_are_served(length: int, client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, length, 5)
    stock = client.stock(tokens)
    difference(stock, client.pool(tokens), TOLERANCE)
    plan = [(200, [1]), (length - 200, [1, 0])]
    difference(stock, client.pool(tokens, plan), TOLERANCE)


@pytest.mark.parametrize("length", [REFUSED, REFUSED + 1, CONTEXT_LENGTH - 1, CONTEXT_LENGTH])
def test_longer_ones_are_refused_at_once_as_by_stock(
    length: int, client: Client, checkpoint: Path
) -> None:
    tokens = text_tokens(checkpoint, length, 5)
    assert client.generate(client.servers.urls["single"], tokens).status_code == 400
    start_s = time.monotonic()
    answer = client.generate(client.servers.url, tokens)
    assert time.monotonic() - start_s < REFUSED_WITHIN_S
    assert answer.status_code >= 400
    straight = client.prefill(tokens, bootstrap_host="127.0.0.1", bootstrap_room=900 + length)
    assert straight.status_code == 400
    assert client.pool(text_tokens(checkpoint, 50, 6)), "and nobody is held up"


@pytest.mark.parametrize("length", [INSTANCE_TOKENS - 65, INSTANCE_TOKENS - 64, INSTANCE_TOKENS])
def test_what_one_instance_cannot_hold_two_do(
    length: int, client: Client, checkpoint: Path
) -> None:
    tokens = text_tokens(checkpoint, length, 7)
    difference(client.stock(tokens), client.pool(tokens), TOLERANCE)


def test_another_prefill_rank_is_refused_at_once(client: Client, checkpoint: Path) -> None:
    """The pool is one replica: whoever names a rank of its own waits for nobody."""
    tokens = text_tokens(checkpoint, 60, 8)
    where = {"bootstrap_host": "127.0.0.1", "bootstrap_room": 4711}
    start_s = time.monotonic()
    answer = client.prefill(tokens, **where, disagg_prefill_dp_rank=1)
    assert time.monotonic() - start_s < REFUSED_WITHIN_S
    assert answer.status_code == 400
    assert "one prefill replica" in answer.text
