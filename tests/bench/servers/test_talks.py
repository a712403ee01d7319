"""Drawn conversations, and that a wrong answer in one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.servers.talks import EDITED, Sizes, draw, hold
from sglang_cdsp.testing.answers import Answer
from sglang_cdsp.testing.prompts import cut_ids

SIZES = Sizes((40, 90), 30, 4)


def answer(token: int) -> Answer:
    return Answer((token,) * 4, (0.0,) * 4, ({token: 0.0, token + 1: -9.0},) * 4)


class Server:
    """Answers by the length of a prompt; keeps prompts and fields."""

    def __init__(self, wrong_at: int | None = None) -> None:
        self.asked: list[tuple[list[int], dict[str, Any]]] = []
        self._wrong_at = wrong_at

    def pool(self, prompt: list[int], fields: dict[str, Any]) -> tuple[Answer, int]:
        self.asked.append((prompt, fields))
        return answer(len(prompt) + (len(self.asked) - 1 == self._wrong_at)), 5

    def stock(self, prompt: list[int]) -> Answer:
        return answer(len(prompt))


def test_a_seed_draws_the_same_conversation_again() -> None:
    talks = [draw(seed, SIZES) for seed in range(60)]
    assert talks == [draw(seed, SIZES) for seed in range(60)]
    assert {talk.salt for talk in talks} == {None, "tenant-0", "tenant-1", "tenant-2"}
    turns = [turn for talk in talks for turn in talk.turns]
    assert any(turn.edit is not None for turn in turns)
    assert all(0 <= turn.after <= number % SIZES.turns for number, turn in enumerate(turns))


def test_a_turn_goes_on_from_an_earlier_one_and_its_answer(checkpoint: Path) -> None:
    for seed in range(8):
        server, talk = Server(), draw(seed, SIZES)
        assert hold(talk, server.pool, server.stock, checkpoint) == 5 * SIZES.turns
        history = [cut_ids(checkpoint, talk.document, 70 + seed % 3)]
        for turn, (prompt, fields) in zip(talk.turns, server.asked, strict=True):
            before = history[turn.after]
            assert fields == ({} if talk.salt is None else {"cache_salt": talk.salt})
            assert len(prompt) == len(before) + turn.added <= SIZES.longest
            edits = [i for i, token in enumerate(before) if prompt[i] != token]
            assert len(edits) <= (turn.edit is not None)
            assert all(prompt[i] == EDITED for i in edits)
            history.append([*prompt, *server.stock(prompt).tokens])


def test_a_wrong_answer_is_told_with_its_turn(checkpoint: Path) -> None:
    server = Server(wrong_at=2)
    with pytest.raises(AssertionError, match=r"conversation 3, turn 2, \d+ tokens of which 5"):
        hold(draw(3, SIZES), server.pool, server.stock, checkpoint)
