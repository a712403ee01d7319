"""Prompts that decode cannot hold are refused, and stop nobody else.

Stock decode refuses what is over its KV cache without telling prefill. What its cache could just
hold, but not with the output tokens that it keeps free, it leaves at the head of its queue for
ever: the requests that these tests send afterwards would wait behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.serving.asking import REFUSED_WITHIN_S
from tests.serving.client import Client, difference, text_tokens
from tests.serving_tp.conftest import DECODE_TOKENS, Timed, timed

# SGLang's default for --num-reserved-decode-tokens.
LONGEST = DECODE_TOKENS - 512
TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def nothing_left_and_still_right(client: Client, checkpoint: Path) -> Iterator[None]:
    free = client.free_tokens()
    yield
    assert client.wait_free(free) == free
    tokens = text_tokens(checkpoint, 200, 9)
    stock = client.pool(tokens, [(200, [0])])
    difference(stock, client.pool(tokens, [(120, [1]), (80, [1, 0])]), TOLERANCE)


def test_the_very_first_request(very_first: Timed) -> None:
    """No decode server has made contact yet, so the pool cannot know how much it holds."""
    assert very_first.response.status_code >= 400
    assert "maximum allowed length" in very_first.response.text
    assert very_first.seconds < REFUSED_WITHIN_S


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (LONGEST + 1, f"decode takes at most {LONGEST}"),
        (DECODE_TOKENS - 7, f"decode takes at most {LONGEST}"),
        (DECODE_TOKENS, "maximum allowed length"),
        (2 * DECODE_TOKENS, "maximum allowed length"),
    ],
)
def test_through_the_router(length: int, words: str, client: Client, checkpoint: Path) -> None:
    answer = timed(client, text_tokens(checkpoint, length, 3))
    assert answer.response.status_code >= 400
    assert words in answer.response.text
    assert answer.seconds < REFUSED_WITHIN_S


def test_at_the_prefill_server(client: Client, checkpoint: Path) -> None:
    """As a router of any kind would send it; 400 with the limit and the remedy."""
    tokens = text_tokens(checkpoint, LONGEST + 1, 3)
    response = client.prefill(tokens, bootstrap_host="127.0.0.1", bootstrap_room=77)
    assert response.status_code == 400
    for words in (str(LONGEST), str(LONGEST + 1), "--max-total-tokens", "shorten the prompt"):
        assert words in response.text
    # Without a decode server there is no limit of decode's.
    assert client.prefill(tokens).status_code == 200


def test_the_longest_prompt_is_served(client: Client, checkpoint: Path) -> None:
    tokens = text_tokens(checkpoint, LONGEST, 3)
    stock = client.pool(tokens, [(LONGEST, [1])])
    ours = client.pool(tokens, [(1000, [0]), (LONGEST - 1000, [0, 1])])
    difference(stock, ours, TOLERANCE)


def test_the_status_tells_the_limit(client: Client) -> None:
    status = requests.get(f"{client.servers.urls['prefill']}/cdsp/status", timeout=10).json()
    assert status["decode"] == {"ranks": 2, "longest_prompt": LONGEST}
