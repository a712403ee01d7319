"""How much of an instance decode gets beside a chunk: by price, as given, or to meet a target.

A target of T seconds between the tokens of a running request asks for the share s = D / T, with D
what a decode step takes (planner/stretches.py). Instances tell their D; a chunk gets one share,
alike at all its members: the largest that one of them needs. Without target and given share it
follows from who runs and who waits (planner/decode_price.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sglang_cdsp.planner.decode_price import USUAL_SHARE, priced_share
from sglang_cdsp.planner.stretches import chunk_pace, least_target_s, share_for

logger = logging.getLogger(__name__)


class DecodeShares:
    """The decode share of each chunk, and how fast chunks come on beside decode."""

    def __init__(self, share: float | None, target_s: float | None) -> None:
        """Nothing is measured yet.

        Args:
            share: of every chunk, if it is given; 0 where nobody decodes.
            target_s: seconds between two tokens; None for none.
        """
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

    def of(self, instances: Iterable[int], running: float = 0.0, waiting: float = 1.0) -> float:
        """The decode share of a chunk on these instances.

        Args:
            running: requests that decode on the one of them that has the most.
            waiting: prompts that wait for chunk time there, the chunk's own among them.
        """
        if self._share is not None:
            return self._share
        steps = [self._steps[i] for i in instances if i in self._steps]
        target_s = self._target_s
        if target_s is None:
            return priced_share(running, waiting, max(steps, default=0.0))
        return max((share_for(target_s, step_s) for step_s in steps), default=USUAL_SHARE)

    def pace(self, instance: int, share: float) -> float:
        """The fraction of an instance's time that a chunk of a decode share gets there."""
        if not share:
            return 1.0
        step_s = self._steps.get(instance)
        return 1.0 - share if step_s is None else chunk_pace(step_s, share)

    def stretch_s(self, instance: int, share: float) -> float:
        """By how much a chunk of a decode share puts off each token there, seconds."""
        pace = self.pace(instance, share)
        return self._steps.get(instance, 0.0) * pace / (1.0 - pace) if pace < 1.0 else 0.0
