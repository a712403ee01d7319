"""Running chunks that prompts may pass, as the ledger expects them to come on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_cdsp.planner.types import Passable

ROUNDING = 1e-9
"""Of a layer: this close to a boundary is at the boundary."""


@dataclass
class Ring:
    """A chunk on its SP group. Times are monotonic seconds.

    What is really passed, and when, only the instances know: these are the times that follow from
    the plans, as the policy that made them reckons.

    Attributes:
        group: its members.
        started_s: when it was started.
        seconds: what it takes by its plan.
        layers: how often it gives way.
        halts_s, resumes_s: between these it stands still for those that pass; equal before
            anybody does.
        stood_s: how long it stands still in all, up to ``resumes_s``.
        taken_s: per member, until when it serves prompts that pass.
    """

    group: tuple[int, ...]
    started_s: float
    seconds: float
    layers: int
    halts_s: float = 0.0
    resumes_s: float = 0.0
    stood_s: float = 0.0
    taken_s: dict[int, float] = field(default_factory=dict)

    def put_off(self, group: Sequence[int], now_s: float, end_s: float) -> float:
        """A prompt passes on ``group`` until ``end_s``; by how much that delays the chunk."""
        goes_on_s = self._goes_on_s(now_s)
        if now_s >= self.resumes_s:
            self.halts_s = goes_on_s
        delay_s = max(0.0, end_s - goes_on_s)
        self.resumes_s = goes_on_s + delay_s
        self.stood_s += delay_s
        for member in set(self.group) & set(group):
            self.taken_s[member] = max(end_s, self.taken_s.get(member, 0.0))
        return delay_s

    def passable(self, now_s: float, own_s: float, waited_s: float, budget_s: float) -> Passable:
        """What a policy sees of it; ``own_s``, ``waited_s`` and ``budget_s`` as there."""
        goes_on_s = self._goes_on_s(now_s)
        halts_s = max(now_s, self.halts_s) if now_s < self.resumes_s else goes_on_s
        return Passable(
            instances=self.group,
            own_s=own_s,
            waited_s=waited_s,
            left_s=max(0.0, self.seconds - self._computed_s(now_s)),
            boundary_s=halts_s - now_s,
            resume_s=goes_on_s - now_s,
            budget_s=max(0.0, budget_s),
            taken_s=tuple(max(0.0, self.taken_s.get(i, 0.0) - now_s) for i in self.group),
        )

    def _goes_on_s(self, now_s: float) -> float:
        """When it goes on if nobody else passes: its next layer boundary if nobody does yet."""
        if now_s < self.resumes_s:
            return self.resumes_s
        layer_s = self.seconds / self.layers
        computed_s = self._computed_s(now_s)
        if layer_s <= 0.0 or computed_s >= self.seconds:
            return now_s
        layers = math.ceil(computed_s / layer_s - ROUNDING)
        return now_s + layers * layer_s - computed_s

    def _computed_s(self, now_s: float) -> float:
        """What it has computed by now."""
        if now_s >= self.resumes_s:
            return now_s - self.started_s - self.stood_s
        before_s = self.stood_s - (self.resumes_s - self.halts_s)
        return min(now_s, self.halts_s) - self.started_s - before_s
