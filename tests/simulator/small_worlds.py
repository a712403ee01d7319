"""Systems small enough to reckon by hand, and a policy that does as it is told."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sglang_cdsp.planner import (
    Coefficients,
    LatencyModel,
    Plan,
    PlannedChunk,
    PoolView,
    PromptView,
)
from sglang_cdsp.planner.policies.first_come import FirstComePolicy
from sglang_cdsp.planner.problem import Candidate, Problem
from sglang_cdsp.planner.types import Placement
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.types import Request

LINEAR = LatencyModel(tuple((s, Coefficients(0.0, 1e-3 / s, 0.0, 0.0)) for s in (1, 2, 4)))
"""One second for 1000 tokens on one instance, and perfect speed-up."""


def world(**changes: Any) -> Setup:
    """One instance in one node, LINEAR, no decode."""
    plain = Setup(
        policy="data-parallel",
        model=LINEAR,
        sp_sizes=(1, 2, 4),
        min_chunk=1,
        instances=1,
        instances_per_node=4,
        kv_tokens=100_000,
        kv_bytes_per_token=1,
        send_bytes_per_s=1000.0,
        receive_bytes_per_s=1000.0,
        decode_instances=0,
        decode_kv_tokens=100_000,
        decode=DecodeModel(1.0, 0.0, 0.0),
    )
    return replace(plain, **changes)


def requests(*rows: tuple[float, int, int]) -> list[Request]:
    """Requests r0, r1, ... from (arrival, prompt tokens, output tokens)."""
    return [Request(f"r{n}", *row) for n, row in enumerate(rows)]


class Scripted(FirstComePolicy):
    """Gives each request the chunks that the script names, as soon as their KV fits."""

    name = "scripted"

    def __init__(self, setup: Setup, script: Mapping[str, Placement]) -> None:
        super().__init__(setup.make_options())
        self.script = script

    def search(self, problem: Problem, report: Any) -> tuple[Candidate | None, float | None]:
        raise AssertionError("nobody searches: `plan` takes the chunks from the script, by request")

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        problem = self._problem(prompt, pool)
        chunks = self.script[prompt.rid]
        return (
            self._planned(problem, Candidate(chunks, 0.0), None) if problem.fits(chunks) else None
        )

    def check(self, prompt: PromptView, pool: PoolView) -> None:
        """Scripts are right."""


class Passing(Scripted):
    """Lets the requests that it is told of pass what runs on their groups, as soon as they come."""

    name = "passing"

    def __init__(
        self, setup: Setup, script: Mapping[str, Placement], passing: Collection[str]
    ) -> None:
        super().__init__(setup, script)
        self.passing = passing

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        plan = super().plan(prompt, pool)
        if plan is None or prompt.rid not in self.passing:
            return plan
        group = plan.instances
        starts = [
            max(ring.boundary_s, taken)
            for ring in pool.passable
            for i, taken in zip(ring.instances, ring.taken_s, strict=True)
            if i in group
        ]
        start = max(starts, default=0.0)
        end = start + self.options.model.predict(len(group), 0, prompt.tokens)
        chunk = PlannedChunk(prompt.tokens, group, start, end)
        return replace(plan, chunks=(chunk,), ttft_s=end, passes=True)


def there(value: float | None) -> float:
    """A time that must not be missing."""
    assert value is not None
    return value
