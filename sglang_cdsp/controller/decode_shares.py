"""How much of an instance decode gets beside a chunk: a given share, or one that meets a target.

A target of T seconds between the tokens of a running request asks for the share s = D / T, with D
what a decode step takes (planner/stretches.py). Instances tell their D; a chunk gets one share,
alike at all its members: the largest that one of them needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sglang_cdsp.planner.stretches import chunk_pace, least_target_s, share_for

logger = logging.getLogger(__name__)


class DecodeShares:
    """The decode share of each chunk, and how fast chunks come on beside decode."""

    def __init__(self, share: float, target_s: float | None) -> None:
        """``share``: without a target, and until a step was measured; 0 where nobody decodes."""
        self._share, self._target_s = share, target_s
        self._steps: dict[int, float] = {}
        self._told_s = 0.0

    def stepped(self, instance: int, step_s: float) -> None:
        """An instance tells what a decode step takes there, seconds.

        A target that cannot be met is named with the one that can, first when SGLang's own warm-up
        has run, before the server says that it is ready.
        """
        self._steps[instance] = step_s
        target_s, least_s = self._target_s, least_target_s(step_s)
        # A batch grows, and with it its steps: say it again where it is much worse than was said.
        if target_s is not None and least_s > max(target_s, 2 * self._told_s):
            self._told_s = least_s
            logger.warning(
                "--cdsp-tpot-target %g cannot be met beside a chunk: a decode step takes %.3f s on "
                "instance %d, and %.3f s is the least between two; give --cdsp-tpot-target %.3f",
                *(target_s, step_s, instance, least_s, least_s),
            )

    def gone(self, instance: int) -> None:
        """An instance's process has ended: its next one has steps of its own."""
        self._steps.pop(instance, None)

    def of(self, instances: Iterable[int]) -> float:
        """The decode share of a chunk on these instances."""
        target_s = self._target_s
        if target_s is None or not self._share:
            return self._share
        steps = [self._steps[i] for i in instances if i in self._steps]
        return max((share_for(target_s, step_s) for step_s in steps), default=self._share)

    def pace(self, instance: int) -> float:
        """The fraction of an instance's time that a chunk gets there beside decode."""
        share = self.of((instance,))
        if not share:
            return 1.0
        step_s = self._steps.get(instance)
        return 1.0 - share if step_s is None else chunk_pace(step_s, share)

    def stretch_s(self, instance: int) -> float:
        """By how much a chunk puts off each token of those that decode there, seconds."""
        pace = self.pace(instance)
        return self._steps.get(instance, 0.0) * pace / (1.0 - pace) if pace < 1.0 else 0.0
