"""Decode's step-time model, fitted to a recorded run of one server.

The plan log tells for each request where it decoded, from when to when and how many tokens. From
that follow the batch at each instance at each time, its KV tokens, and what ran beside. Steps are
fitted to requests that decoded almost alone, and to the others how far stretches of chunks overrun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sglang_cdsp.planner.stretches import LONGEST_S, stretch_s
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.plan_log import Recorded
from sglang_cdsp.simulator.setup import DecodeModel

FEWEST_TOKENS = 8
"""Outputs shorter than this say little of a step."""

LEAST_THERE = 0.95
"""Of a request's decode time, at one instance: less, and it says little of a step there."""

MOST_BESIDE = 0.02
"""Of a request's decode time, with a chunk beside it: more, and it does not count as alone."""

LEAST_BESIDE = 0.3
"""Of a request's decode time, with a chunk beside it: less, and it says little of stretches."""

SAMPLES_FOR_LENGTH = 12
"""Fewer requests than this do not tell what batch and length cost."""


@dataclass(frozen=True)
class Sample:
    """The mean of some decode steps: requests in the batch, their KV tokens, seconds a step."""

    batch: float
    tokens: float
    seconds: float

    def step_s(self, model: DecodeModel) -> float:
        """What a model says of such a step, seconds."""
        return model.a + model.b * self.batch + model.c * self.tokens


def fit_decode(samples: Sequence[Sample]) -> DecodeModel:
    """The model a + b * batch + c * tokens with the least relative squared error, none negative.

    Relative errors let the model lean to short steps: in the end it is scaled to their mean.

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
    scale = seconds.sum() / ((rows @ best[1]) * seconds).sum()
    return DecodeModel(*(best[1] * scale).tolist())


def fit_overrun(
    recorded: Sequence[Recorded], model: DecodeModel, share: Callable[[Recorded, int], float]
) -> float:
    """By how much stretches are longer than their shares say, seconds; 0 where nothing tells.

    Of a request beside which a chunk ran for a fraction f of its decode time, 1/TPOT tokens come a
    second: (1 - f) / D without the chunk and f / (B + D + overrun) beside it, with D its step and B
    the stretch. The overrun is the one with which all such TPOTs have their real sum.

    Args:
        recorded: the run that ``model`` was fitted to.
        share: ``(request, chunk)``, the decode share of a recorded chunk.
    """
    found: list[tuple[float, float, float, float]] = []
    for mine in recorded:
        if mine.tpot_s is None or mine.request.output_tokens < FEWEST_TOKENS:
            continue
        home, span = _longest_stay(mine)
        shares = [
            (_overlap(span, times), share(r, number))
            for r in recorded
            for number, ((_, group), times) in enumerate(zip(r.chunks, r.chunk_spans, strict=True))
            if home in group
        ]
        fraction = sum(part for part, _ in shares)
        used = sum(part * given for part, given in shares)
        if not LEAST_BESIDE <= fraction <= 1.0 or used <= 0.0:
            continue
        step = Sample(*_batch_in(recorded, home, span), mine.tpot_s).step_s(model)
        found.append((mine.tpot_s, fraction, step, stretch_s(step, used / fraction)))
    if not found:
        return 0.0
    real, fraction_, step_, stretch = map(np.array, zip(*found, strict=True))

    def lacks(overrun_s: float) -> bool:
        rate = (1 - fraction_) / step_ + fraction_ / (stretch + step_ + overrun_s)
        return float((1 / rate).sum()) < float(real.sum())

    low, high = 0.0, LONGEST_S
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if lacks(middle) else (low, middle)
    return low


def decode_samples(recorded: Sequence[Recorded]) -> list[Sample]:
    """What the requests say that decoded almost without chunks beside them."""
    found: list[Sample] = []
    for mine in recorded:
        if mine.tpot_s is None or mine.request.output_tokens < FEWEST_TOKENS:
            continue
        home, span = _longest_stay(mine)
        if _overlap(mine.decode_span, span) < LEAST_THERE:
            continue
        if beside(recorded, home, span) > MOST_BESIDE:
            continue
        found.append(Sample(*_batch_in(recorded, home, span), mine.tpot_s))
    return found


def _longest_stay(mine: Recorded) -> tuple[int, tuple[float, float]]:
    """The instance at which a request decoded for longest, and from when to when."""
    return max(mine.decode_spans, key=lambda there: there[1][1] - there[1][0])


def _batch_in(
    recorded: Sequence[Recorded], home: int, span: tuple[float, float]
) -> tuple[float, float]:
    """Requests that decode on an instance in a time, on average, and their KV tokens."""
    batch = tokens = 0.0
    for other in recorded:
        if other.tpot_s is None:
            continue
        share = sum(_overlap(span, also) for at, also in other.decode_spans if at == home)
        batch += share
        tokens += share * (other.request.prompt_tokens + other.request.output_tokens / 2)
    return batch, tokens


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
