"""All ranks of an instance find, evict and keep alike."""

from __future__ import annotations

from pathlib import Path

from tests.serving.client import difference, text_tokens
from tests.serving_prefixes.client import LIMIT, ReusingClient
from tests.serving_prefixes_tp.conftest import INSTANCE_TOKENS

TOLERANCE = 1e-3
CAPACITY = [INSTANCE_TOKENS] * 2


def test_turns_and_evictions(client: ReusingClient, checkpoint: Path) -> None:
    """Each turn is compared with the same prompt in a namespace of its own, without any reuse.

    Both are kept, so that the instances are full after some turns.
    """
    prompt = text_tokens(checkpoint, 2001, 61)
    first = client.pool(prompt, [(1000, [1]), (1001, [1, 0])], **LIMIT)
    assert client.settled(CAPACITY) == [0, 2001]
    length, reused = 2001, 0
    prompt = [*prompt, *first.tokens]
    for turn in range(6):
        prompt += text_tokens(checkpoint, 31, 70 + turn)
        ours, cached = client.ask(prompt)
        assert cached <= length
        reused += cached
        whole, none = client.ask(prompt, cache_salt=f"turn {turn}")
        assert none == 0
        difference(whole, ours, TOLERANCE)
        client.settled(CAPACITY)
        length, prompt = len(prompt), [*prompt, *ours.tokens]
    assert reused > 0
