"""Conversations: a second turn continues the first one's answer, with plans of all kinds.

`SGLANG_CDSP_TEST_CASES=SEED:COUNT` draws so many more of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import Answer, Plan, difference, read, text_tokens
from tests.serving.conftest import POOL_SIZE
from tests.serving.plans import draw_case, more_lengths
from tests.serving_unified.client import OneServerClient

TOLERANCE = 1e-3
OUTPUT = 12
LENGTHS = (33, 130, 400, 700, 1000, 1500, 2200, 3000)
SAME_HOME: Plan = [(300, [2]), (400, [2, 0, 1])]


@dataclass(frozen=True)
class Turn:
    """What a user adds, and the plan that the whole prompt demands; None leaves it to the policy.

    Attributes:
        tokens: of what is added.
        seed: draws where in the text it begins.
        plan: by the length of the whole prompt.
    """

    tokens: int
    seed: int
    plan: Callable[[int], Plan | None]


def draw(length: int, seed: int) -> tuple[Turn, Turn]:
    """A conversation of two turns."""
    rng = random.Random(f"conversation-{length}-{seed}")
    return _turn(rng, length), _turn(rng, rng.randint(1, 500))


def _turn(rng: random.Random, tokens: int) -> Turn:
    drawn = rng.randrange(1 << 20)
    plans: tuple[Callable[[int], Plan | None], ...] = (
        lambda length: None,
        # A short prompt on one instance goes through its radix cache.
        lambda length: [(length, [drawn % POOL_SIZE])],
        lambda length: draw_case(length, drawn, POOL_SIZE).raw_plan,
    )
    return Turn(tokens, rng.randrange(100), rng.choice(plans))


CONVERSATIONS = [
    draw(*drawn) for drawn in [*((length, length) for length in LENGTHS), *more_lengths()]
]


def talk(client: OneServerClient, checkpoint: Path, turns: tuple[Turn, Turn]) -> list[Any]:
    """Both servers' answers by turn; stock's are what the conversation goes on with."""
    prompt: list[int] = []
    answers = []
    for turn in turns:
        prompt += text_tokens(checkpoint, turn.tokens, turn.seed)
        limit: dict[str, Any] = {"sampling_params": {"max_new_tokens": OUTPUT}}
        ours = client.pool(prompt, turn.plan(len(prompt)), **limit)
        stock = client.stock(prompt, **limit)
        answers.append((stock, ours))
        prompt += stock.tokens
    return answers


def right(answers: list[tuple[Answer, Answer]]) -> None:
    """Every turn is stock's."""
    for stock, ours in answers:
        assert len(ours.tokens) == OUTPUT
        difference(stock, ours, TOLERANCE)


@pytest.mark.parametrize("number", range(0, len(LENGTHS), 2))
def test_a_conversation_alone(number: int, client: OneServerClient, checkpoint: Path) -> None:
    right(talk(client, checkpoint, CONVERSATIONS[number]))


def test_conversations_eight_at_a_time(client: OneServerClient, checkpoint: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        talks = threads.map(lambda turns: talk(client, checkpoint, turns), CONVERSATIONS)
        for answers in talks:
            right(answers)


def test_what_chunks_computed_is_cached_for_the_next_turn(
    client: OneServerClient, checkpoint: Path
) -> None:
    prompt = text_tokens(checkpoint, 700, 51)
    first = client.pool(prompt, SAME_HOME)
    again = [*prompt, *first.tokens, 9, 10, 11]
    plan = {"custom_params": {"cdsp_plan": [(len(again), [2])]}}
    response = client.generate(client.servers.urls["pool"], again, sampling_params=plan)
    difference(client.stock(again), read(response), TOLERANCE)
    assert response.json()["meta_info"]["cached_tokens"] >= 700
