"""Before a decode server plans start from what homes have kept, and answers are stock's.

`SGLANG_CDSP_TEST_CASES=SEED:COUNT` draws so many more conversations.
"""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.client import difference, read, text_tokens
from tests.serving.logged import told
from tests.serving.plans import more_lengths
from tests.serving_prefixes.client import LIMIT, OUTPUT, ReusingClient
from tests.serving_prefixes.conftest import INSTANCE_TOKENS, POOL_SIZE

TOLERANCE = 1e-3
CAPACITY = [INSTANCE_TOKENS] * POOL_SIZE
TALKS = 6 + len(more_lengths())
NEW = 61
"""So little is new in a turn that no latency model would have all of it computed again."""


def test_turns_start_where_the_one_before_is_kept(
    client: ReusingClient, checkpoint: Path, plan_log: Path
) -> None:
    client.flush(CAPACITY)
    prompt = text_tokens(checkpoint, 2501, 61)
    first = client.pool(prompt, [(1000, [2]), (1501, [2, 0, 1])], **LIMIT)
    assert client.settled(CAPACITY)[2] == 2501, "home has gathered the whole prompt"
    prompt, length = [*prompt, *first.tokens], 2501
    for turn in range(2):
        prompt += text_tokens(checkpoint, NEW, 62 + turn)
        ours, cached = client.ask(prompt)
        difference(client.stock(prompt, **LIMIT), ours, TOLERANCE)
        # Decode has its own output, too, whose last token has no KV; home has the prompt.
        assert cached == length + client.decode_reuses * (OUTPUT - 1)
        line = told(plan_log, len(prompt))
        assert line["prefix"]["reused_tokens"] == length
        assert line["chunks"][0]["instances"][0] == 2
        assert sum(chunk["tokens"] for chunk in line["chunks"]) == len(prompt) - length
        client.settled(CAPACITY)
        length, prompt = len(prompt), [*prompt, *ours.tokens]


def test_a_group_that_grows_has_the_prefix_spread_and_decode_all_of_it(
    client: ReusingClient, checkpoint: Path
) -> None:
    """What is new is long, so that the policy spreads it; its history is mostly cached."""
    client.flush(CAPACITY)
    prompt = text_tokens(checkpoint, 3001, 64)
    client.pool(prompt, [(3001, [1])], **LIMIT)
    client.settled(CAPACITY)
    again = [*prompt, *text_tokens(checkpoint, 6007, 65)]
    ours, cached = client.ask(again)
    difference(client.stock(again, **LIMIT), ours, TOLERANCE)
    assert cached in (0, 3001)
    client.settled(CAPACITY)


def test_what_an_instance_cannot_hold_whole_is_kept_in_part(
    client: ReusingClient, checkpoint: Path
) -> None:
    """Longer than an instance has slots: home keeps what it has from the first token on."""
    client.flush(CAPACITY)
    prompt = text_tokens(checkpoint, INSTANCE_TOKENS + 4001, 66)
    plan = [(6000, [0]), (len(prompt) - 6000, [0, 1, 2, 3])]
    ours = client.pool(prompt, plan, **LIMIT)
    difference(client.stock(prompt, **LIMIT), ours, TOLERANCE)
    trees = client.settled(CAPACITY)
    assert 0 < trees[0] < len(prompt)
    assert trees[1:] == [0, 0, 0]
    short = [*prompt[:1000], *text_tokens(checkpoint, NEW, 67)]
    ours, cached = client.ask(short)
    difference(client.stock(short, **LIMIT), ours, TOLERANCE)
    assert cached >= 1000


def test_cached_tokens_in_every_answer(client: ReusingClient, checkpoint: Path) -> None:
    client.flush(CAPACITY)
    prompt = text_tokens(checkpoint, 2002, 68)
    client.pool(prompt, [(2002, [3, 1])], **LIMIT)
    client.settled(CAPACITY)
    again = [*prompt, *text_tokens(checkpoint, NEW, 69)]
    url = client.servers.url
    body: dict[str, Any] = {"model": "m", "prompt": again, "max_tokens": 4}
    usage = requests.post(f"{url}/v1/completions", json=body, timeout=120).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2002
    client.settled(CAPACITY)
    _, cached = client.ask(again)
    assert cached == len(again) - 1, "all but its last token"
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    response = requests.post(f"{url}/v1/completions", json=streamed, timeout=120)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    (usage,) = [found for line in lines if (found := json.loads(line).get("usage"))]
    assert usage["prompt_tokens_details"]["cached_tokens"] == len(again) - 1


def test_nothing_with_log_probabilities_is_reused(client: ReusingClient, checkpoint: Path) -> None:
    prompt = text_tokens(checkpoint, 2000, 63)
    client.pool(prompt, [(2000, [1])], **LIMIT)
    client.settled(CAPACITY)
    again = [*prompt, *text_tokens(checkpoint, 100, 64)]
    ours = client.generate(client.servers.url, again, logprob_start_len=1500, **LIMIT)
    stock = client.generate(client.servers.urls["single"], again, logprob_start_len=1500, **LIMIT)
    difference(read(stock), read(ours), TOLERANCE)
    mine, theirs = (answer.json()["meta_info"] for answer in (ours, stock))
    assert len(mine["input_token_logprobs"]) == len(theirs["input_token_logprobs"])
    both = (answer["input_token_logprobs"] for answer in (mine, theirs))
    for own, their in zip(*both, strict=True):
        assert own[1] == their[1]
        assert own[0] is None or own[0] == pytest.approx(their[0], abs=TOLERANCE)


def test_namespaces_share_nothing(client: ReusingClient, checkpoint: Path) -> None:
    client.flush(CAPACITY)  # what came before begins with the same token
    prompt = text_tokens(checkpoint, 1800, 65)
    again = [*prompt, 3, 4, 5]
    for key in ({"cache_salt": "a"}, {"extra_key": "a"}):
        client.ask(prompt, **key)
        client.settled(CAPACITY)
        ours, cached = client.ask(again, **key)
        assert cached >= 1800
        difference(client.stock(again, **LIMIT), ours, TOLERANCE)
    for key in ({}, {"cache_salt": "b"}, {"extra_key": "b"}):
        _, cached = client.ask(prompt, **key)
        assert cached == 0


def test_questions_about_a_document_that_is_being_computed(
    client: ReusingClient, checkpoint: Path
) -> None:
    """They wait for the document's own KV, or compute it elsewhere where that is sooner."""
    client.flush(CAPACITY)
    before = client.prefixes()
    document = text_tokens(checkpoint, 6001, 71)
    prompts = [[*document, *text_tokens(checkpoint, 11 + n, 72 + n)] for n in range(6)]
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(client.ask, prompts[0])
        time.sleep(0.2)
        others = list(threads.map(client.ask, prompts[1:]))
        answers = [first.result(), *others]
    for prompt, (ours, _) in zip(prompts, answers, strict=True):
        difference(client.stock(prompt, **LIMIT), ours, TOLERANCE)
    assert sum(cached for _, cached in answers[1:]) > 0
    client.settled(CAPACITY)
    print(f"\n{client.prefixes()['misses'] - before['misses']} misses")


def talk(client: ReusingClient, checkpoint: Path, seed: int) -> int:
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
        if rng.random() < 0.2:
            client.stream_and_leave(prompt, rng.uniform(0.1, 1.0))
        ours, reused = client.ask(prompt, **salt)
        stock = client.stock(prompt, **LIMIT)
        difference(stock, ours, TOLERANCE)
        cached += reused
        history.append([*prompt, *stock.tokens])
    return cached


def test_conversations_under_pressure(client: ReusingClient, checkpoint: Path) -> None:
    """Their prompts are more than the instances hold; some turns are asked for and given up."""
    before = client.prefixes()
    with ThreadPoolExecutor(6) as threads:
        cached = list(threads.map(lambda seed: talk(client, checkpoint, seed), range(TALKS)))
    assert sum(cached) > 0
    client.settled(CAPACITY)
    after = client.prefixes()
    assert after["plans_reusing"] > before["plans_reusing"]
    assert after["lost_events"] == 0
