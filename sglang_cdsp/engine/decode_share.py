"""How long chunks may keep an instance's decoding requests waiting for their next token.

A chunk runs in stretches, a decode step after each (planner/stretches.py). The decode share is one
number a chunk, alike at all its members, each of which times its own steps.
"""

from __future__ import annotations

from sglang_cdsp.planner.stretches import stretch_s

NEW_WEIGHT = 0.2
"""Weight of the newest step in the running mean: batches grow and shrink by a request at a time."""


class DecodeShare:
    """The length of stretches on one rank, which times its own decode steps."""

    def __init__(self, alone_s: float) -> None:
        """``alone_s``: the stretch while nobody decodes, and the least one."""
        self._alone_s = alone_s
        self._step_s: float | None = None

    @property
    def step_s(self) -> float | None:
        """A decode step's running mean, seconds; None before the first."""
        return self._step_s

    def stepped(self, seconds: float) -> None:
        """A decode step took so long."""
        before = self._step_s
        self._step_s = seconds if before is None else before + NEW_WEIGHT * (seconds - before)

    def stretch_s(self, share: float, *, decodes: bool) -> float:
        """How long chunks may go on until the loop's next turn.

        Args:
            share: of the chunk that runs, above 0 and at most 0.5; 0 while none does.
            decodes: whether requests wait for their next token here.
        """
        if not decodes or self._step_s is None or not share:
            return self._alone_s
        return stretch_s(self._step_s, share, self._alone_s)
