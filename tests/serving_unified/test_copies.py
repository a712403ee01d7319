"""Cached prefixes are copied between instances, and answers are stock's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.logged import told
from tests.serving.reference import TOLERANCE
from tests.serving_unified.cached import (
    LIMIT,
    OUTPUT,
    ask,
    flush,
    prefixes,
)
from tests.serving_unified.client import OneServerClient


def made(client: OneServerClient) -> dict[str, Any]:
    """What was copied since the start."""
    shown: dict[str, Any] = prefixes(client)["copies"]
    return shown


@pytest.fixture(autouse=True)
def as_before(client: OneServerClient) -> Iterator[None]:
    """Caches are empty first; in the end seats do both, and every slot is free or cached."""
    flush(client)
    yield
    assert client.post("/cdsp/update", {"roles": f"{POOL_SIZE}b"}).status_code == 200
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
    assert made(client)["under_way"] == 0


def test_a_turn_starts_from_what_a_seat_has_that_only_decodes(
    client: OneServerClient, checkpoint: Path, plan_log: Path
) -> None:
    before = made(client)
    prompt = text_tokens(checkpoint, 2507, 161)
    first = client.pool(prompt, [(1000, [2]), (1507, [2, 0, 1])], **LIMIT)
    assert client.post("/cdsp/update", {"roles": {"2": "decode"}}).status_code == 200
    again = [*prompt, *first.tokens, *text_tokens(checkpoint, 61, 162)]
    ours, cached = ask(client, again)
    difference(client.stock(again, **LIMIT), ours, TOLERANCE)
    # The answer's last token has no KV.
    assert cached == 2507 + OUTPUT - 1
    line = told(plan_log, len(again))
    assert line["prefix"]["reused_tokens"] == cached
    assert line["prefix"]["copy"]["from"] == 2
    assert line["prefix"]["copy"]["tokens"] == cached
    assert not line["prefix"]["missed"]
    assert 2 not in {i for chunk in line["chunks"] for i in chunk["instances"]}
    after = made(client)
    assert after["made"]["plan"] == before["made"]["plan"] + 1
    assert after["tokens"] == before["tokens"] + cached
    assert after["bytes"] > before["bytes"]
    assert after["failed"] == before["failed"]


def test_what_was_copied_from_the_only_decode_seat_does_not_go_back(
    client: OneServerClient, checkpoint: Path, plan_log: Path
) -> None:
    """A conversation: each turn is computed elsewhere, and decodes where its past is cached."""
    last = POOL_SIZE - 1
    prompt = text_tokens(checkpoint, 2611, 165)
    client.pool(prompt, [(2611, [last])], **LIMIT)
    assert client.post("/cdsp/update", {"roles": f"{last}p1d"}).status_code == 200
    for turn in range(3):
        past = len(prompt) - 1  # an answer's last token has no KV
        prompt = [*prompt, *text_tokens(checkpoint, 71, 166 + turn)]
        ours, cached = ask(client, prompt)
        difference(client.stock(prompt, **LIMIT), ours, TOLERANCE)
        assert cached >= 2610
        line = told(plan_log, len(prompt))
        (move,) = line["moves"]
        assert move["to"] == last
        assert move["cached"] >= past
        assert move["cached"] + move["ahead"] >= len(prompt)
        prompt = [*prompt, *ours.tokens]


def test_a_document_that_is_asked_ten_times_gets_a_second_copy(
    client: OneServerClient, checkpoint: Path
) -> None:
    before = made(client)
    document = text_tokens(checkpoint, 2600, 163)
    for number in range(10):
        prompt = [*document, *text_tokens(checkpoint, 40 + number, 170 + number)]
        ours, cached = ask(client, prompt)
        difference(client.stock(prompt, **LIMIT), ours, TOLERANCE)
        assert bool(number) == (cached >= len(document))
    for _ in range(50):
        after = made(client)
        if not after["under_way"]:
            break
        time.sleep(0.1)
    assert after["made"]["use"] > before["made"]["use"]
    holders = [pages for pages in prefixes(client)["pages_by_instance"] if pages >= len(document)]
    assert len(holders) >= 2


def test_questions_at_once_about_what_a_decode_seat_has(
    client: OneServerClient, checkpoint: Path
) -> None:
    """One copy, or more where that is sooner; who comes meanwhile waits for it or computes."""
    document = text_tokens(checkpoint, 2600, 164)
    client.pool(document, [(2600, [3])], **LIMIT)
    assert client.post("/cdsp/update", {"roles": {"3": "decode"}}).status_code == 200
    prompts = [[*document, *text_tokens(checkpoint, 30 + n, 180 + n)] for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda prompt: ask(client, prompt), prompts))
    for prompt, (ours, _) in zip(prompts, answers, strict=True):
        difference(client.stock(prompt, **LIMIT), ours, TOLERANCE)
    assert sum(cached for _, cached in answers) > 0
