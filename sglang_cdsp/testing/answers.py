"""Answers of servers with their log-probabilities, and how far two of them are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOP = 5
"""Best tokens that are asked for with each generated one."""


@dataclass(frozen=True)
class Answer:
    """Generated tokens with their log-probabilities.

    Attributes:
        tokens: ids in order.
        logprobs: of each token.
        top: per token, the ``TOP`` best as ``{id: logprob}``.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[dict[int, float], ...]

    @classmethod
    def of(cls, data: Any) -> Answer:
        """Read ``/generate``'s JSON, asked for with ``return_logprob`` and ``TOP`` tops."""
        meta = data["meta_info"]
        tops = meta["output_top_logprobs"]
        return cls(
            tokens=tuple(int(token) for token in data["output_ids"]),
            logprobs=tuple(float(entry[0]) for entry in meta["output_token_logprobs"]),
            top=tuple({int(e[1]): float(e[0]) for e in entries} for entries in tops),
        )

    def margin(self, index: int) -> float:
        """How far the best token lies ahead of the second."""
        best, second, *_ = sorted(self.top[index].values(), reverse=True)
        return best - second


@dataclass(frozen=True)
class Comparison:
    """Two answers side by side.

    Attributes:
        compared: tokens up to the end, or to where the two part.
        early: whether they part at a token where stock's own two best are nearly as good.
        worst: the largest gap between log-probabilities of one candidate.
    """

    compared: int
    early: bool
    worst: float


def compare(stock: Answer, ours: Answer, tolerance: float) -> Comparison:
    """Compare two answers token by token.

    The comparison stops early where the tokens differ and stock's two best lie closer than
    ``tolerance``: what follows has another context.

    Raises:
        AssertionError: on a difference.
    """
    assert len(stock.tokens) == len(ours.tokens)
    worst = 0.0
    for index, token in enumerate(stock.tokens):
        mine, theirs = ours.top[index], stock.top[index]
        for candidate, logprob in theirs.items():
            if candidate in mine:
                gap = abs(mine[candidate] - logprob)
                assert gap <= tolerance, f"token {index}: candidate {candidate} is off by {gap}"
                worst = max(worst, gap)
        least = min(theirs.values())
        for candidate in set(theirs) ^ set(mine):
            seen = {**mine, **theirs}[candidate]
            assert abs(seen - least) <= tolerance, f"token {index}: top {TOP} differ"
        if ours.tokens[index] != token:
            assert stock.margin(index) < tolerance, (
                f"token {index}: {ours.tokens} for {stock.tokens}"
            )
            return Comparison(index, True, worst)
    return Comparison(len(stock.tokens), False, worst)


def gap_at_first_token(left: Answer, right: Answer) -> float:
    """The largest gap of a candidate that is among the best in both; infinite if there is none."""
    shared = left.top[0].keys() & right.top[0].keys()
    return max((abs(left.top[0][c] - right.top[0][c]) for c in shared), default=float("inf"))
