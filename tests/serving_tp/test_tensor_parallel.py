"""Instances of two ranks each give stock's answers, and their ranks stay in step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.serving.client import Client, difference, text_tokens
from tests.serving.plans import draw_case
from tests.serving_tp.conftest import FAULTY_LENGTH

TOLERANCE = 1e-3
LENGTHS = (1, 3, 129, 509, 2039)


def test_forced_plans_equal_the_stock_path(client: Client, checkpoint: Path) -> None:
    """A one-instance plan takes SGLang's own path in the same tensor-parallel instance."""
    cases = [draw_case(length, seed, 2) for length in LENGTHS for seed in range(4)]
    stock = {
        length: client.pool(text_tokens(checkpoint, length, 1), [(length, [1])])
        for length in LENGTHS
    }

    def ask(index: int) -> None:
        case = cases[index]
        answer = client.pool(text_tokens(checkpoint, case.length, 1), case.raw_plan)
        difference(stock[case.length], answer, TOLERANCE)

    for index in range(0, len(cases), 2):
        ask(index)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(len(cases))))


def test_the_policys_own_plans(client: Client, checkpoint: Path) -> None:
    for length in (3, 509, 2039):
        tokens = text_tokens(checkpoint, length, 1)
        stock = client.pool(tokens, [(length, [0])])
        difference(stock, client.pool(tokens), TOLERANCE)


def test_a_failed_chunk_leaves_the_ranks_alike(client: Client, checkpoint: Path) -> None:
    """Both ranks of instance 1 fail in chunk 1; then they serve on, in step."""
    free = client.free_tokens()
    plan = {"custom_params": {"cdsp_plan": [(400, [0]), (FAULTY_LENGTH - 400, [0, 1])]}}
    tokens = text_tokens(checkpoint, FAULTY_LENGTH, 1)
    for _ in range(2):
        response = client.generate(client.servers.url, tokens, sampling_params=plan)
        assert response.status_code == 500, response.text
        stock = client.pool(tokens[1:], [(FAULTY_LENGTH - 1, [0])])
        ours = client.pool(tokens[1:], [(400, [0]), (FAULTY_LENGTH - 401, [0, 1])])
        difference(stock, ours, TOLERANCE)
    assert client.wait_free(free) == free


def test_no_slot_is_left_behind(client: Client, checkpoint: Path) -> None:
    free = client.free_tokens()
    for seed in range(6):
        case = draw_case(300, seed, 2)
        client.pool(text_tokens(checkpoint, 300, seed), case.raw_plan)
    assert client.wait_free(free) == free
