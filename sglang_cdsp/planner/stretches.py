"""How an instance's time is shared between a chunk and the decode steps beside it.

A chunk runs in stretches, a decode step after each. With a step of D seconds and a decode share s
the stretch is B = D (1/s - 1), at least `LEAST_S` and at most `LONGEST_S`. A running request feels
B + D between two tokens, the chunk gets B / (B + D) of the instance. Shares are at most a half:
where a stretch is shorter than a step, long prompts run away.
"""

from __future__ import annotations

LEAST_SHARE, MOST_SHARE = 0.01, 0.5

LEAST_S = 0.02
"""Shortest stretch: below it a turn of the loop costs more than it brings."""

LONGEST_S = 1.0
"""Longest stretch beside a decode batch, whatever a step takes: messages are to be read too."""


def stretch_s(step_s: float, share: float, least_s: float = LEAST_S) -> float:
    """How long a chunk may go on until the next decode step, seconds.

    Args:
        step_s: a decode step, seconds.
        share: of the instance's time that decode gets, in (0, 1).
        least_s: the shortest stretch.
    """
    return min(max(step_s * (1.0 / share - 1.0), least_s), LONGEST_S)


def chunk_pace(step_s: float, share: float) -> float:
    """The fraction of an instance's time that a chunk gets beside decode steps of ``step_s``."""
    stretch = stretch_s(step_s, share)
    return stretch / (stretch + step_s)


def share_for(target_s: float, step_s: float) -> float:
    """The decode share with which tokens come ``target_s`` apart beside a chunk, within limits.

    B + D = D / s, so s = D / target.
    """
    return min(max(step_s / target_s, LEAST_SHARE), MOST_SHARE)


def least_target_s(step_s: float) -> float:
    """The least time between two tokens beside a chunk that a share can give, seconds."""
    return stretch_s(step_s, MOST_SHARE) + step_s
