"""Plans that start from cached prefixes answer as stock does, and reuse what there is.

`SGLANG_CDSP_TEST_CASES=SEED:COUNT` draws so many more conversations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.servers.talks import TOLERANCE, Sizes, draw, hold
from sglang_cdsp.testing.caches import await_agreement
from sglang_cdsp.testing.kv_events import EventPorts, Replay
from tests.serving.client import Answer, difference, read, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.logged import told
from tests.serving.plans import more_lengths
from tests.serving_unified.cached import LIMIT, OUTPUT, ask, flush, prefixes
from tests.serving_unified.client import OneServerClient

SIZES = Sizes(output=OUTPUT)
TALKS = 8 + len(more_lengths())
STORM = 1000
"""Seeds from here on are those of conversations under flushes."""


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

    def pool(prompt: list[int], fields: dict[str, Any]) -> tuple[Answer, int]:
        return ask(client, prompt, **fields)

    def stock(prompt: list[int]) -> Answer:
        return client.stock(prompt, **LIMIT)

    return hold(draw(seed, SIZES), pool, stock, checkpoint)


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


@pytest.fixture(scope="module")
def replay(ports: EventPorts) -> Iterator[Replay]:
    """Hears all of the pool's KV events."""
    hears = Replay(ports)
    yield hears
    hears.close()


def test_trees_index_slots_and_events_agree_when_all_is_quiet(
    client: OneServerClient, replay: Replay
) -> None:
    """Each page of the trees is looked at, beside what they have told."""
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything, "no slot and no lock is left over"
    assert all(state["cache"]["pages"] is not None for state in client.pool_states())
    assert await_agreement(client.servers.urls["pool"], replay) == []
    counts = replay.subscriber.counts
    assert counts["BlockStored"] > 0
    assert counts["BlockRemoved"] > 0, "conversations came and went"
    assert counts["AllBlocksCleared"] > 1, "one at the start, and one at each flush"


def test_events_are_those_of_one_stock_server(
    client: OneServerClient, checkpoint: Path, ports: EventPorts, stock_ports: EventPorts
) -> None:
    """The same prompts, in the same namespaces, leave the same pages behind."""
    flush(client)
    stock_url = client.servers.urls["single"]
    assert requests.post(f"{stock_url}/flush_cache?timeout=10", timeout=30).status_code == 200
    prompt = text_tokens(checkpoint, 500, 67)
    asked: list[tuple[list[int], dict[str, str]]] = [
        (prompt, {}),
        ([*prompt[:300], 3, 4, 5], {}),
        (prompt, {"cache_salt": "tenant"}),
        (text_tokens(checkpoint, 200, 68), {"extra_key": "key"}),
        (text_tokens(checkpoint, 200, 69), {"extra_key": "key", "cache_salt": "tenant"}),
    ]
    for tokens, key in asked:
        for url in (client.servers.urls["pool"], stock_url):
            read(client.generate(url, tokens, **LIMIT, **key))
    ours, theirs = Replay(ports), Replay(stock_ports, strict=False)
    for _ in range(100):
        held = [heard.catch_up().held() for heard in (ours, theirs)]
        if held[0] == held[1]:
            break
        time.sleep(0.1)
    ours.close()
    theirs.close()
    assert len(held[1]) > 1000
    assert held[0] == held[1]


def test_routers_are_told_of_one_publisher(client: OneServerClient, ports: EventPorts) -> None:
    told = [
        requests.get(f"{client.servers.urls[name]}/server_info", timeout=30).json()["kv_events"]
        for name in ("pool", "single")
    ]
    assert told[0] == {**told[1], "endpoint_port_base": ports.live}
    assert told[0]["dp_size"] == 1
