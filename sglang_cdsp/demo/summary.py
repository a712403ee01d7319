"""What the demonstration says at its end: times to the first token, ours beside stock's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_cdsp.demo.client import Answer

SHORT_TOKENS = 1_000
"""Prompts up to here count as short."""


@dataclass(frozen=True)
class FirstTokens:
    """Times to the first token of some prompts.

    Attributes:
        p50_s, p99_s: percentiles, seconds.
    """

    p50_s: float
    p99_s: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that ``share`` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def first_tokens(answers: Sequence[Answer], *, short: bool) -> FirstTokens | None:
    """Those of the short or of the long prompts; None if there are none."""
    times = [a.ttft_s for a in answers if (a.prompt_tokens <= SHORT_TOKENS) is short]
    if not times:
        return None
    return FirstTokens(percentile(times, 0.5), percentile(times, 0.99))


def lines(ours: Sequence[Answer], stock: Sequence[Answer]) -> list[str]:
    """One line for short prompts and one for long ones.

    Args:
        ours: the pool's answers.
        stock: stock SGLang's to the same prompts; empty if it was not asked.
    """
    found = []
    for name, short in (("short", True), ("long", False)):
        mine, theirs = (first_tokens(side, short=short) for side in (ours, stock))
        if mine is None:
            continue
        bound = f"{'up to' if short else 'over'} {SHORT_TOKENS:,} tokens"
        words = f"TTFT of {name} prompts ({bound}):"
        found.append(f"{words:<44}{_pair(mine, theirs)}")
    return found


def _pair(mine: FirstTokens, theirs: FirstTokens | None) -> str:
    if theirs is None:
        return f"P50 {mine.p50_s:.2f} s, P99 {mine.p99_s:.2f} s"
    return (
        f"P50 {mine.p50_s:.2f} s (stock {theirs.p50_s:.2f}), "
        f"P99 {mine.p99_s:.2f} s (stock {theirs.p99_s:.2f})"
    )
