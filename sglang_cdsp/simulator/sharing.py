"""Drawn workloads whose prompts share prefixes: conversations, and questions about documents.

Blocks are those of `Request.blocks`. A seed gives the same texts at every rate, only closer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import OUTPUTS, Lengths

FIRST, MESSAGES = Lengths(1024, 48 * 1024, 8 * 1024), Lengths(32, 4096, 400)
DOCUMENTS, QUESTIONS = Lengths(4 * 1024, 95 * 1024, 23.6 * 1024), Lengths(16, 1024, 100)


@dataclass(frozen=True, slots=True)
class Conversations:
    """Conversations of several turns: each prompt is all that was said before, and a new message.

    Attributes:
        first: tokens of the first message, a document or a system prompt among them.
        message, answer: tokens of the later messages, and of all answers.
        turns: on average; the number is geometric, 1 at least.
        pause_s: from a turn's arrival to the next one's, on average; exponential above `least_s`.
        least_s: in which an answer is certainly there.
    """

    first: Lengths = FIRST
    message: Lengths = MESSAGES
    answer: Lengths = OUTPUTS
    turns: float = 4.0
    pause_s: float = 60.0
    least_s: float = 20.0


def conversations(
    rate: float, requests: int, seed: int, shape: Conversations, block: int
) -> tuple[Request, ...]:
    """Requests of conversations that begin as a Poisson process, `rate` requests/s on average.

    Args:
        block: tokens of a block.
    """
    rng = np.random.default_rng(seed)
    names = count()
    found: list[Request] = []
    began_s = 0.0
    talk = 0
    while len(found) < requests:
        began_s += float(rng.exponential(shape.turns))
        at_s, tokens = began_s, 0
        blocks: tuple[int, ...] = ()
        for turn in range(int(rng.geometric(1 / shape.turns))):
            says = shape.message if turn else shape.first
            prompt = tokens + int(says.draw(rng, 1)[0])
            answer = int(shape.answer.draw(rng, 1)[0])
            blocks = _grown(blocks, (prompt + answer) // block, names)
            found.append(Request(f"{talk}.{turn}", at_s / rate, prompt, answer, blocks))
            tokens = prompt + answer
            # Pauses are the users', so they do not shrink with the rate.
            pause_s = shape.least_s + rng.exponential(shape.pause_s - shape.least_s)
            at_s += float(pause_s) * rate
        talk += 1
    return tuple(sorted(found, key=lambda request: request.arrival_s)[:requests])


@dataclass(frozen=True, slots=True)
class Documents:
    """Questions about documents of which some are asked about much more than others.

    Attributes:
        documents: how many there are.
        skew: the n-th most asked about is asked about n^-skew as often as the first.
        document, question, answer: tokens.
    """

    documents: int = 50
    skew: float = 1.0
    document: Lengths = DOCUMENTS
    question: Lengths = QUESTIONS
    answer: Lengths = OUTPUTS


def questions(
    rate: float, requests: int, seed: int, shape: Documents, block: int
) -> tuple[Request, ...]:
    """Questions as a Poisson process, `rate` requests/s on average; `block` as above."""
    rng = np.random.default_rng(seed)
    names = count()
    lengths = shape.document.draw(rng, shape.documents).tolist()
    texts = [_grown((), length // block, names) for length in lengths]
    weights = np.arange(1, shape.documents + 1) ** -shape.skew
    asked = rng.choice(shape.documents, requests, p=weights / weights.sum()).tolist()
    extra = shape.question.draw(rng, requests).tolist()
    answers = shape.answer.draw(rng, requests).tolist()
    arrivals = (np.cumsum(rng.exponential(1.0, requests)) / rate).tolist()
    return tuple(
        Request(
            str(number),
            arrivals[number],
            lengths[document] + extra[number],
            answers[number],
            _grown(
                texts[document],
                (lengths[document] + extra[number] + answers[number]) // block,
                names,
            ),
        )
        for number, document in enumerate(asked)
    )


def _grown(blocks: tuple[int, ...], whole: int, names: Iterator[int]) -> tuple[int, ...]:
    """The blocks with new ones behind them, `whole` in all."""
    return blocks + tuple(next(names) for _ in range(whole - len(blocks)))
