"""Conversations drawn by a seed: turns, branches, shared documents, edits in the middle, salts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_cdsp.testing.answers import Answer, compare
from sglang_cdsp.testing.prompts import cut_ids

TOLERANCE = 1e-3
EDITED = 9
"""The token that an edit puts in place of another."""

Ask = Callable[[list[int], dict[str, Any]], tuple[Answer, int]]
"""``(prompt, fields)``: the pool's answer, and how many tokens were cached."""

Stock = Callable[[list[int]], Answer]


@dataclass(frozen=True)
class Sizes:
    """How long conversations are, in tokens.

    Attributes:
        documents: lengths of the documents that they begin with.
        added: most tokens that a turn adds.
        output: tokens of an answer.
        turns: of a conversation.
    """

    documents: tuple[int, ...] = (400, 1500, 2500)
    added: int = 700
    output: int = 8
    turns: int = 4

    @property
    def longest(self) -> int:
        """The longest prompt with its answer."""
        return max(self.documents) + self.turns * (self.added + self.output)


@dataclass(frozen=True)
class Turn:
    """One question.

    Attributes:
        after: what it goes on from: 0 is the document, 1 the first turn with its answer, and so on.
        added: new tokens.
        edit: where a token of the prompt is another one than before, as a share of its length;
            None for nowhere.
    """

    after: int
    added: int
    edit: float | None


@dataclass(frozen=True)
class Talk:
    """A conversation; three share a document, and three a tenant's salt.

    Attributes:
        seed: that it was drawn by.
        document: tokens of what it begins with.
        salt: of its namespace, None for the common one.
    """

    seed: int
    document: int
    turns: tuple[Turn, ...]
    salt: str | None = None


def draw(seed: int, sizes: Sizes) -> Talk:
    """Draw a conversation."""
    rng = random.Random(f"talk-{seed}")
    salt = f"tenant-{seed % 3}" if seed % 4 == 3 else None
    document = rng.choice(sizes.documents)
    turns = tuple(
        Turn(
            after=rng.randint(0, number),
            added=rng.randint(1, sizes.added),
            edit=rng.random() if rng.random() < 0.2 else None,
        )
        for number in range(sizes.turns)
    )
    return Talk(seed, document, turns, salt)


def hold(talk: Talk, ask: Ask, stock: Stock, checkpoint: Path) -> int:
    """Hold a conversation with a pool; every answer must be stock's. Returns what was cached of it.

    Stock's answers are what it goes on with.

    Raises:
        AssertionError: an answer is another one; says which.
    """
    fields = {"cache_salt": talk.salt} if talk.salt is not None else {}
    history = [cut_ids(checkpoint, talk.document, 70 + talk.seed % 3)]
    cached = 0
    for number, turn in enumerate(talk.turns):
        prompt = [*history[turn.after], *cut_ids(checkpoint, turn.added, 80 + number)]
        if turn.edit is not None:
            prompt[int(turn.edit * len(prompt))] = EDITED
        ours, reused = ask(prompt, fields)
        theirs = stock(prompt)
        try:
            compare(theirs, ours, TOLERANCE)
        except AssertionError as error:
            raise AssertionError(
                f"conversation {talk.seed}, turn {number}, {len(prompt)} tokens of which {reused} "
                f"were cached: {error}"
            ) from error
        cached += reused
        history.append([*prompt, *theirs.tokens])
    return cached
