"""Decode's step-time model, fitted to a recorded run of one server.

The plan log tells for each request where it decoded, from when to when and how many tokens. From
that follow the batch at each instance at each time, its KV tokens, and what ran beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.plan_log import Recorded
from sglang_cdsp.simulator.setup import DecodeModel

FEWEST_TOKENS = 8
"""Outputs shorter than this say little of a step."""

LEAST_THERE = 0.95
"""Of a request's decode time, at one instance: less, and it says little of a step there."""

MOST_BESIDE = 0.02
"""Of a request's decode time, with a chunk beside it: more, and it does not count as alone."""

SAMPLES_FOR_LENGTH = 12
"""Fewer requests than this do not tell what batch and length cost."""


@dataclass(frozen=True)
class Sample:
    """The mean of some decode steps: requests in the batch, their KV tokens, seconds a step."""

    batch: float
    tokens: float
    seconds: float


def fit_decode(samples: Sequence[Sample]) -> DecodeModel:
    """The model a + b * batch + c * tokens with the least relative squared error, none negative.

    Every subset of the three terms is fitted by least squares, and the best one that has no
    negative coefficient taken: with three terms that is non-negative least squares.

    Raises:
        SetupError: there is nothing to fit.
    """
    if not samples:
        raise SetupError("no decode step was measured alone; give --decode-model")
    seconds = np.array([s.seconds for s in samples])
    rows = np.array([(1.0, s.batch, s.tokens) for s in samples]) / seconds[:, None]
    most = 3 if len(samples) >= SAMPLES_FOR_LENGTH else 1
    best: tuple[float, np.ndarray] | None = None
    for count in range(1, most + 1):
        for chosen in combinations(range(most), count):
            if 0 not in chosen:
                continue  # a step of nobody is not free
            part = rows[:, list(chosen)]
            found = np.linalg.lstsq(part, np.ones(len(samples)), rcond=None)[0]
            if (found < 0).any() or not found[0] > 0:
                continue
            error = float(((part @ found - 1.0) ** 2).sum())
            if best is None or error < best[0] - 1e-12:
                whole = np.zeros(3)
                whole[list(chosen)] = found
                best = error, whole
    assert best is not None  # a alone is a mean of positive numbers
    return DecodeModel(*best[1].tolist())


def decode_samples(recorded: Sequence[Recorded]) -> list[Sample]:
    """What the requests say that decoded almost without chunks beside them."""
    found: list[Sample] = []
    for mine in recorded:
        if mine.tpot_s is None or mine.request.output_tokens < FEWEST_TOKENS:
            continue
        home, span = max(mine.decode_spans, key=lambda there: there[1][1] - there[1][0])
        if _overlap(mine.decode_span, span) < LEAST_THERE:
            continue
        if beside(recorded, home, span) > MOST_BESIDE:
            continue
        batch = tokens = 0.0
        for other in recorded:
            if other.tpot_s is None:
                continue
            share = sum(_overlap(span, also) for at, also in other.decode_spans if at == home)
            batch += share
            tokens += share * (other.request.prompt_tokens + other.request.output_tokens / 2)
        found.append(Sample(batch, tokens, mine.tpot_s))
    return found


def beside(recorded: Sequence[Recorded], instance: int, span: tuple[float, float]) -> float:
    """The fraction of a time in which a chunk runs on an instance."""
    return sum(
        _overlap(span, times)
        for r in recorded
        for (_, group), times in zip(r.chunks, r.chunk_spans, strict=True)
        if instance in group
    )


def decoded_beside(recorded: Sequence[Recorded], chunk: int, mine: Recorded) -> float:
    """The fraction of a chunk's time in which a request decodes on a member, at most 1."""
    group, span = mine.chunks[chunk][1], mine.chunk_spans[chunk]
    by_member = [
        sum(
            _overlap(span, there)
            for other in recorded
            if other.tpot_s is not None
            for at, there in other.decode_spans
            if at == member
        )
        for member in group
    ]
    return min(1.0, max(by_member))


def _overlap(span: tuple[float, float], other: tuple[float, float]) -> float:
    """What part of ``span`` lies in ``other``."""
    common = min(span[1], other[1]) - max(span[0], other[0])
    return max(0.0, common) / (span[1] - span[0]) if span[1] > span[0] else 0.0
