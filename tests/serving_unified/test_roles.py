"""Seats turn under load: running requests move, and their clients see stock's tokens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cdsp.testing.answers import Answer
from tests.serving.client import Plan, difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving_unified.client import OneServerClient
from tests.serving_unified.penalties import penalties
from tests.serving_unified.streams import Stream, no_repetition

TOLERANCE = 1e-3
OUTPUT = 48
AHEAD: tuple[Plan, ...] = ([(3000, [0]), (3000, [0, 1])], [(6000, [1, 0])])
TURNS = ("2p2d", "2d2p", "1p3d", "1d2p1d", "3b1d")
ASKED: tuple[tuple[int, dict[str, Any]], ...] = (
    (60, {}),
    (300, penalties(frequency_penalty=0.4, presence_penalty=0.3)),
    (700, penalties(repetition_penalty=1.3) | {"min_new_tokens": 20}),
    (1500, {}),
    (2600, penalties(frequency_penalty=0.4)),
    (4000, {}),
)


def params(extra: dict[str, Any]) -> dict[str, Any]:
    return {"sampling_params": {"max_new_tokens": OUTPUT, **extra}}


def status(client: OneServerClient) -> dict[str, Any]:
    return dict(requests.get(f"{client.servers.urls['pool']}/cdsp/status", timeout=30).json())


@contextmanager
def turning(client: OneServerClient, every_s: float) -> Iterator[None]:
    """The seats turn again and again meanwhile; afterwards every one does both."""
    over = threading.Event()
    answers: list[requests.Response] = []

    def turn() -> None:
        number = 0
        while not over.wait(every_s):
            answers.append(client.post("/cdsp/update", {"roles": TURNS[number % len(TURNS)]}))
            number += 1

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        client.post("/cdsp/update", {"roles": f"{POOL_SIZE}b"})
    assert {answer.status_code for answer in answers} == {200}


def test_tokens_are_stocks_while_seats_turn(client: OneServerClient, checkpoint: Path) -> None:
    prompts = [text_tokens(checkpoint, length, seed) for seed, (length, _) in enumerate(ASKED)]
    asked = [params(extra) for _, extra in ASKED]
    stock = [client.stock(prompt, **more) for prompt, more in zip(prompts, asked, strict=True)]
    before = status(client)["counters"]["requests_moved"]
    with turning(client, 1.0), ThreadPoolExecutor(len(ASKED)) as threads:

        def ask(number: int) -> Answer:
            return client.pool(prompts[number % len(ASKED)], **asked[number % len(ASKED)])

        answers = list(threads.map(ask, range(3 * len(ASKED))))
    early = 0
    for number, answer in enumerate(answers):
        assert len(answer.tokens) == OUTPUT
        early += difference(stock[number % len(ASKED)], answer, TOLERANCE)[1]
    assert early <= len(answers) // 6
    counters = status(client)["counters"]
    print(f"\nmoved {counters['requests_moved'] - before}, longest {counters['longest_move_s']} s")
    assert counters["requests_moved"] > before


def test_a_grammar_and_a_stream_move_along(client: OneServerClient, checkpoint: Path) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 300, "regex": "[a-f ]{1200,}"}
    body: dict[str, Any] = {
        "input_ids": text_tokens(checkpoint, 400, 9),
        "sampling_params": sampling,
    }
    stock = requests.post(f"{client.servers.urls['single']}/generate", json=body, timeout=120)
    before = status(client)["counters"]["requests_moved"]
    stream = Stream(client.servers.urls["pool"], body)
    with turning(client, 0.2):
        ours = stream.read()
    assert ours["output_ids"] == stock.json()["output_ids"]
    assert ours["text"] == stock.json()["text"]
    no_repetition(stream.events)
    assert status(client)["counters"]["requests_moved"] > before


def test_a_turned_seat_is_left_by_what_decodes_there(
    client: OneServerClient, checkpoint: Path
) -> None:
    plan = [[900, [0]], [900, [0, 1]]]
    prompt = text_tokens(checkpoint, 1800, 11)
    more = {"max_new_tokens": 200, "custom_params": {"cdsp_plan": plan}}
    stock = client.stock(prompt, sampling_params={"max_new_tokens": 200})
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.pool, prompt, None, sampling_params=more)
        until_decoding(client, 0)
        assert client.post("/cdsp/update", {"roles": {"0": "prefill"}}).status_code == 200
        difference(stock, answer.result(), TOLERANCE)
    client.post("/cdsp/update", {"roles": f"{POOL_SIZE}b"})


def test_a_prompt_goes_to_its_decode_seat_while_its_last_chunk_runs(
    client: OneServerClient, checkpoint: Path, plan_log: Path
) -> None:
    """Its last chunk runs at two instances that are not to decode."""
    last = POOL_SIZE - 1
    assert client.post("/cdsp/update", {"roles": f"{last}p1d"}).status_code == 200
    prompts = [text_tokens(checkpoint, 6000, 12 + number) for number, _ in enumerate(AHEAD)]
    again = (*zip(prompts, AHEAD, strict=True), (prompts[0], AHEAD[1]))
    try:
        for number, (prompt, plan) in enumerate(again):
            more = params({}) | {"rid": f"ahead-{number}"}
            ours = client.pool(prompt, plan, **more)
            difference(client.stock(prompt, **params({})), ours, TOLERANCE)
            record = logged(plan_log, f"ahead-{number}")
            (move,) = record["moves"]
            assert (move["from"], move["to"]) == (plan[0][1][0], last)
            assert move["ahead"] + move["cached"] == len(prompt)
            if number < len(AHEAD):
                assert move["cached"] < 100, "the prompts begin alike at most"
            else:
                assert move["cached"] == len(prompt), "that seat has it"
            assert move["asked_s"] < record["ttft_s"]["measured"], "while the chunk runs"
            print(f"\ndecoded at home: {move['tokens'] - len(prompt)} tokens")
    finally:
        client.post("/cdsp/update", {"roles": f"{POOL_SIZE}b"})


def logged(plan_log: Path, rid: str) -> dict[str, Any]:
    """What the plan log says of a request, which may be written a moment after its answer."""
    for _ in range(100):
        lines = [json.loads(line) for line in plan_log.read_text(encoding="utf-8").splitlines()]
        if found := [line for line in lines if line.get("rid") == rid]:
            return dict(found[-1])
        time.sleep(0.1)
    raise AssertionError(f"{rid} is not in the plan log")


def until_decoding(client: OneServerClient, seat: int) -> None:
    for _ in range(300):
        if status(client)["pool"]["decoding"][seat]:
            return
        time.sleep(0.1)
    raise AssertionError("nothing decodes there")


@pytest.mark.parametrize("roles", ["4p", "3p2d", {"0": "sleep"}, {"9": "decode"}, 7])
def test_roles_that_cannot_be_are_refused(client: OneServerClient, roles: Any) -> None:
    answer = client.post("/cdsp/update", {"roles": roles})
    assert answer.status_code == 400
    assert status(client)["roles"] == f"{POOL_SIZE}b"


def test_every_slot_is_free_or_cached_afterwards(client: OneServerClient) -> None:
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
