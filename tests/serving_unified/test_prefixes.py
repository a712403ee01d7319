"""Plans that start from cached prefixes answer as stock does, and reuse what there is.

`SGLANG_CDSP_TEST_CASES=SEED:COUNT` draws so many more conversations.
"""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.client import Answer, difference, read, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.plans import more_lengths
from tests.serving_unified.client import OneServerClient

TOLERANCE = 1e-3
OUTPUT = 8
LIMIT: dict[str, Any] = {"sampling_params": {"max_new_tokens": OUTPUT}}
TALKS = 8 + len(more_lengths())
STORM = 1000
"""Seeds from here on are those of conversations under flushes."""


def prefixes(client: OneServerClient) -> dict[str, Any]:
    """What the controller knows of caches."""
    url = f"{client.servers.urls['pool']}/cdsp/status"
    shown: dict[str, Any] = requests.get(url, timeout=30).json()["prefixes"]
    return shown


def ask(client: OneServerClient, prompt: list[int], **fields: Any) -> tuple[Answer, int]:
    """The pool's answer, by a plan of its own, and how many tokens were cached."""
    response = client.generate(client.servers.urls["pool"], prompt, **{**LIMIT, **fields})
    return read(response), int(response.json()["meta_info"]["cached_tokens"])


def told(plan_log: Path, tokens: int) -> dict[str, Any]:
    """The last line of the plan log about a prompt of so many tokens; it may take a moment."""
    for _ in range(100):
        lines = [json.loads(line) for line in plan_log.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line.get("prompt_tokens") == tokens]
        if found:
            return dict(found[-1])
        time.sleep(0.1)
    raise AssertionError(f"no prompt of {tokens} tokens was logged")


def flush(client: OneServerClient) -> None:
    """Empty all caches."""
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
    assert client.post("/flush_cache").status_code == 200


def test_a_second_turn_starts_where_the_first_one_is_cached(
    client: OneServerClient, checkpoint: Path, plan_log: Path
) -> None:
    flush(client)
    prompt = text_tokens(checkpoint, 2501, 61)
    first = client.pool(prompt, [(1000, [2]), (1501, [2, 0, 1])], **LIMIT)
    # So little is new that no latency model would have all of it computed again.
    again = [*prompt, *first.tokens, *text_tokens(checkpoint, 61, 62)]
    ours, cached = ask(client, again)
    difference(client.stock(again, **LIMIT), ours, TOLERANCE)
    # The answer's last token has no KV.
    assert cached == 2501 + OUTPUT - 1
    line = told(plan_log, len(again))
    assert line["prefix"]["reused_tokens"] == cached
    assert line["chunks"][0]["instances"][0] == 2
    assert sum(chunk["tokens"] for chunk in line["chunks"]) == len(again) - cached
    third = [*again, *ours.tokens, 5, 6, 7]
    ours, cached = ask(client, third)
    difference(client.stock(third, **LIMIT), ours, TOLERANCE)
    assert cached == len(again) + OUTPUT - 1


def test_nothing_with_log_probabilities_is_reused(
    client: OneServerClient, checkpoint: Path
) -> None:
    prompt = text_tokens(checkpoint, 2000, 63)
    client.pool(prompt, [(2000, [1])], **LIMIT)
    again = [*prompt, *text_tokens(checkpoint, 100, 64)]
    ours = client.generate(client.servers.urls["pool"], again, logprob_start_len=1500, **LIMIT)
    stock = client.generate(client.servers.urls["single"], again, logprob_start_len=1500, **LIMIT)
    difference(read(stock), read(ours), TOLERANCE)
    mine, theirs = (answer.json()["meta_info"] for answer in (ours, stock))
    assert 1000 < mine["cached_tokens"] <= 1500
    assert len(mine["input_token_logprobs"]) == len(theirs["input_token_logprobs"])
    both = (answer["input_token_logprobs"] for answer in (mine, theirs))
    for own, their in zip(*both, strict=True):
        assert own[1] == their[1]
        assert own[0] is None or own[0] == pytest.approx(their[0], abs=TOLERANCE)


def test_namespaces_share_nothing(client: OneServerClient, checkpoint: Path) -> None:
    flush(client)  # what came before begins with the same token
    prompt = text_tokens(checkpoint, 1800, 65)
    again = [*prompt, 3, 4, 5]
    for key in ({"cache_salt": "a"}, {"extra_key": "a"}):
        ask(client, prompt, **key)
        ours, cached = ask(client, again, **key)
        assert cached >= 1800
        difference(client.stock(again, **LIMIT), ours, TOLERANCE)
    for key in ({}, {"cache_salt": "b"}, {"extra_key": "b"}, {"cache_salt": "a", "extra_key": "a"}):
        _, cached = ask(client, prompt, **key)
        assert cached == 0


def test_a_flush_empties_trees_and_index(client: OneServerClient, checkpoint: Path) -> None:
    prompt = text_tokens(checkpoint, 1700, 66)
    ask(client, prompt)
    assert prefixes(client)["pages"] > 0
    flush(client)
    for _ in range(50):
        if not sum(prefixes(client)["pages_by_instance"]):
            break
        time.sleep(0.1)
    assert sum(prefixes(client)["pages_by_instance"]) == 0
    _, cached = ask(client, [*prompt, 1, 2])
    assert cached == 0


def talk(client: OneServerClient, checkpoint: Path, seed: int) -> int:
    """A conversation with branches, edits and shared documents; returns what was cached of it."""
    rng = random.Random(f"prefixes-{seed}")
    salt = {"cache_salt": f"tenant-{seed % 3}"} if seed % 4 == 3 else {}
    shared = text_tokens(checkpoint, rng.choice((400, 1500, 2500)), 70 + seed % 3)
    history = [shared]
    cached = 0
    for turn in range(4):
        prompt = [*rng.choice(history), *text_tokens(checkpoint, rng.randint(1, 700), 80 + turn)]
        if rng.random() < 0.2:
            prompt[rng.randrange(len(prompt))] = 9
        ours, reused = ask(client, prompt, **salt)
        stock = client.stock(prompt, **LIMIT)
        difference(stock, ours, TOLERANCE)
        cached += reused
        history.append([*prompt, *stock.tokens])
    return cached


def test_conversations_eight_at_a_time_under_pressure(
    client: OneServerClient, checkpoint: Path
) -> None:
    """Their prompts and answers are more than the instances hold."""
    before = prefixes(client)
    with ThreadPoolExecutor(8) as threads:
        cached = list(threads.map(lambda seed: talk(client, checkpoint, seed), range(TALKS)))
    assert sum(cached) > 0
    after = prefixes(client)
    assert after["plans_reusing"] > before["plans_reusing"]


def test_conversations_while_caches_are_flushed(client: OneServerClient, checkpoint: Path) -> None:
    """A flush happens when no request is in the pool: between two turns, or not at all."""
    over = threading.Event()

    def flush_now_and_then() -> int:
        flushed = 0
        while not over.wait(0.2):
            flushed += client.post("/flush_cache?timeout=2").status_code == 200
        return flushed

    with ThreadPoolExecutor(4) as threads:
        flusher = threads.submit(flush_now_and_then)
        talks = [threads.submit(talk, client, checkpoint, STORM + seed) for seed in range(3)]
        try:
            for one in talks:
                one.result()
        finally:
            over.set()
        print(f"\n{flusher.result()} flushes")
    flush(client)


def test_index_and_trees_agree_when_all_is_quiet(client: OneServerClient) -> None:
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything, "no slot and no lock is left over"
    for _ in range(50):
        trees = [int(state["cached_tokens"]) for state in client.pool_states()]
        if prefixes(client)["pages_by_instance"] == trees:
            break
        time.sleep(0.1)
    assert prefixes(client)["pages_by_instance"] == trees
    assert prefixes(client)["lost_events"] == 0
