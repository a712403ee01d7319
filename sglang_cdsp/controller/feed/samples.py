"""How much the pool does, second by second, for the curves of the page at ``/cdsp``."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any

from sglang_cdsp.controller.feed.recent import Versioned, computed_tokens
from sglang_cdsp.controller.feed.records import state_of
from sglang_cdsp.controller.phases import BEFORE_A_PLAN
from sglang_cdsp.controller.request import PoolRequest

EVERY_S = 1.0
MOST = 600
"""Samples that are kept: ten minutes."""


@dataclass(frozen=True)
class Sample:
    """The pool at a moment.

    Attributes:
        at_s: monotonic seconds.
        waiting: requests without a plan.
        running: requests that compute, or are queued to, or end.
        decoding: requests that decode on the instances.
        tokens: prompt tokens computed since the start.
        ends: requests that have ended since the start.
        arrival_rate: requests a second over the planner's window.
        improvement_rate: in force.
    """

    at_s: float
    waiting: int
    running: int
    decoding: int
    tokens: int
    ends: int
    arrival_rate: float
    improvement_rate: float


FIELDS = tuple(field.name for field in fields(Sample))


def sample(
    requests: Iterable[PoolRequest],
    *,
    at_s: float,
    tokens: int,
    ends: int,
    regulation: dict[str, Any],
) -> Sample:
    """Look at the requests that are not over.

    Args:
        tokens, ends: of those that are.
        regulation: as ``Regulator.snapshot`` has it.
    """
    counts: Counter[str] = Counter()
    for request in requests:
        if request.phase in BEFORE_A_PLAN:
            counts["waiting"] += 1
            continue
        counts["decoding" if state_of(request) == "decoding" else "running"] += 1
        tokens += computed_tokens(request)
    return Sample(
        round(at_s, 3),
        counts["waiting"],
        counts["running"],
        counts["decoding"],
        tokens,
        ends,
        round(regulation["arrival_rate"], 4),
        regulation["improvement_rate"],
    )


class Samples:
    """The samples of the last minutes."""

    def __init__(self, next_version: Callable[[], int]) -> None:
        """``next_version`` numbers samples among all that is shown."""
        self._next_version = next_version
        self._kept: deque[tuple[int, Sample]] = deque(maxlen=MOST)
        self._due_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Whether it is time for the next one."""
        return now_s >= self._due_s

    def add(self, taken: Sample, now_s: float) -> None:
        """Keep one more; the oldest goes."""
        self._due_s = now_s + EVERY_S
        self._kept.append((self._next_version(), taken))

    def since(self, version: int) -> Iterator[Versioned]:
        """Samples after a version, oldest first, each as the values of ``FIELDS``."""
        for taken_at, taken in self._kept:
            if taken_at > version:
                yield Versioned(taken_at, {"values": list(astuple(taken))})
