"""A recorded run of the real pool, once more in the simulator: how far off is it?

The plan log has what is needed: arrivals, lengths, plans, and the TTFT that the server measured.
Two questions, two replays. With the *recorded* plans only their execution is simulated: errors are
those of the latency model and of what the simulator leaves out. With the *policy* planning anew,
its decisions are part of what is compared; near a tie a small error may turn into another plan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.memory import fits
from sglang_cdsp.planner.policies import Policy
from sglang_cdsp.planner.types import Considered, Plan, PoolView, PromptView
from sglang_cdsp.planner.views import after_plan
from sglang_cdsp.simulator.decode_fit import decoded_beside
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import SimulationError
from sglang_cdsp.simulator.metrics import token_gaps
from sglang_cdsp.simulator.plan_log import Recorded, instances_named
from sglang_cdsp.simulator.setup import Setup

PERCENTILES = (50, 99)

AT_ANY_PRICE = 100.0
"""A budget for passing that recorded plans do not exhaust: the server judged them by its own."""


@dataclass(frozen=True)
class Beside:
    """What decode takes of a chunk's time.

    Attributes:
        decode_share: what it was to get, where the log does not say it; 0 for nothing.
        overrun_steps: by how many decode steps stretches were longer than that share says.
    """

    decode_share: float = 0.0
    overrun_steps: float = 0.0

    def asked(self, r: Recorded, chunk: int) -> float:
        """The decode share that a recorded chunk was started with."""
        return r.decode_shares[chunk] if r.decode_shares else self.decode_share

    def share(self, r: Recorded, chunk: int) -> float:
        """What decode got of it while requests decoded: D of D / s and the overrun."""
        asked = self.asked(r, chunk)
        return 1.0 / (1.0 / asked + self.overrun_steps) if asked else 0.0


NOBODY = Beside()
"""Nobody decodes where chunks run."""


@dataclass(frozen=True)
class Comparison:
    """Real and simulated TTFT, seconds, in arrival order: both of shape (n,).

    real_tpot, simulated_tpot: the mean time between two tokens of the requests that decode in the
    pool, seconds; both of shape (m,).
    """

    real: np.ndarray
    simulated: np.ndarray
    real_tpot: np.ndarray = field(default_factory=lambda: np.zeros(0))
    simulated_tpot: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def errors(self) -> np.ndarray:
        """Each request's (simulated - real) / real."""
        return self.simulated / self.real - 1

    def percentile_error(self, percentile: float) -> float:
        """The relative error of a percentile of TTFT."""
        real, simulated = (np.percentile(v, percentile) for v in (self.real, self.simulated))
        return float(simulated / real - 1)

    def to_dict(self) -> dict[str, Any]:
        """Signed errors, but for the means over requests, which are of absolute errors."""
        size = np.abs(self.errors)
        return {
            "requests": len(self.real),
            "request_error": {
                "mean": float(size.mean()),
                "p50": float(np.median(size)),
                "p90": float(np.percentile(size, 90)),
                "worst": float(self.errors[size.argmax()]),
            },
            "mean_ttft_error": float(self.simulated.mean() / self.real.mean() - 1),
            **{f"p{p}_ttft_error": self.percentile_error(p) for p in PERCENTILES},
            **{f"p{p}_ttft_s": float(np.percentile(self.real, p)) for p in PERCENTILES},
            **self._tpot(),
        }

    def _tpot(self) -> dict[str, float]:
        if not len(self.real_tpot):
            return {}
        real, simulated = float(self.real_tpot.mean()), float(self.simulated_tpot.mean())
        return {"mean_tpot_s": real, "mean_tpot_error": simulated / real - 1}


class RecordedPolicy(Policy):
    """The policy that gives every prompt the plan that it got, in the order they were given."""

    name = "recorded"

    def __init__(self, recorded: Iterable[Recorded], model: LatencyModel, page_size: int) -> None:
        """``model`` times the plans; it never decides anything."""
        self._order = deque(sorted(recorded, key=lambda r: r.bound_s))
        self._chunks = {r.request.rid: r.chunks for r in self._order}
        self._reused = {r.request.rid: r.reused for r in self._order}
        self._passing = {r.request.rid for r in self._order if r.passes}
        self._model, self._page_size = model, page_size
        self._waiting: dict[str, PromptView] = {}

    def arrive(self, prompt: PromptView, now_s: float) -> None:
        self._waiting[prompt.rid] = prompt

    def finish(self, rid: str, now_s: float) -> None:
        self._waiting.pop(rid, None)

    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        bound: list[tuple[str, Plan]] = []
        while self._order and (prompt := self._waiting.get(self._order[0].request.rid)):
            plan = self.plan(prompt, pool)
            if plan is None:
                break
            self._order.popleft()
            del self._waiting[prompt.rid]
            bound.append((prompt.rid, plan))
            pool = after_plan(pool, plan, prompt, self._page_size)
        return bound

    def waiting(self) -> tuple[str, ...]:
        return tuple(self._waiting)

    def check(self, prompt: PromptView, pool: PoolView) -> None:
        """What ran once fits."""

    def could_run(self, prompt: PromptView, pool: PoolView) -> bool:
        """What ran once could."""
        return True

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        chunks, reused = self._chunks[prompt.rid], self._reused[prompt.rid]
        holders = (chunks[0][1][0],) if reused else ()
        free, page = pool.free_tokens, self._page_size
        if free is not None and not fits(chunks, free, page, reused, holders):
            return None
        plan = replace(timed_plan(chunks, self._model, pool, reused), reused=reused)
        return self._passing_plan(plan, pool) if prompt.rid in self._passing else plan

    def _passing_plan(self, plan: Plan, pool: PoolView) -> Plan:
        """The plan at the next boundary of what it passes; unchanged if nothing runs here."""
        (chunk,) = plan.chunks
        group = set(chunk.instances)
        rings = [ring for ring in pool.passable if not group.isdisjoint(ring.instances)]
        if not rings:
            return plan
        start = max(
            max(ring.boundary_s, taken)
            for ring in rings
            for i, taken in zip(ring.instances, ring.taken_s, strict=True)
            if i in group
        )
        end = start + chunk.end_s - chunk.start_s
        return replace(
            plan, chunks=(replace(chunk, start_s=start, end_s=end),), ttft_s=end, passes=True
        )

    def explain(
        self, prompt: PromptView, pool: PoolView
    ) -> tuple[Plan | None, tuple[Considered, ...]]:
        return self.plan(prompt, pool), ()


def replay(recorded: Sequence[Recorded], setup: Setup, *, plans: bool) -> Comparison:
    """Simulate the recorded arrivals; ``plans``: with the recorded plans, else planned anew.

    Args:
        setup: the pool that was recorded. Decode is left out where decode servers had it, as TTFT
            ends at the pool; one server is simulated to the last token.

    Raises:
        SimulationError, PlannerError: the set-up is not the recorded pool's.
    """
    named = instances_named(recorded)
    if plans and named > setup.instances:
        raise SimulationError(
            f"the log's plans name {named} instances, the pool has {setup.instances}; give "
            f"--instances {named}"
        )
    for r in recorded if plans else ():
        if not fits(r.chunks, (setup.slots,) * setup.instances, setup.page_size):
            raise SimulationError(
                f"{r.request.rid}: its {r.request.prompt_tokens} tokens do not fit instances of "
                f"{setup.kv_tokens} KV slots as it ran; give --kv-tokens as the server had it"
            )
    policy = RecordedPolicy(recorded, setup.model, setup.page_size) if plans else None
    alone = replace(setup, decode_instances=0, unified=False)
    if plans:
        alone = replace(alone, preempt_budget=AT_ANY_PRICE)
    result = simulate(alone, [r.request for r in recorded], policy=policy)
    for ran in result.records:
        if ran.ttft_s is None:
            raise SimulationError(f"{ran.request.rid} ran, but not here: {ran.error}")
    simulated = np.array([ran.ttft_s for ran in result.records])
    tpots = [
        (real.tpot_s, float(token_gaps([ran]).mean()))
        for real, ran in zip(recorded, result.records, strict=True)
        if real.tpot_s is not None and setup.one_server
    ]
    return Comparison(
        np.array([r.ttft_s for r in recorded]),
        simulated,
        np.array([real for real, _ in tpots]),
        np.array([ran for _, ran in tpots]),
    )


def fitted_speed(
    recorded: Sequence[Recorded], model: LatencyModel, beside: Beside = NOBODY
) -> LatencyModel:
    """``model`` with one factor per SP size: the sum of real chunk times over the predicted one.

    What a profile of an otherwise idle machine cannot know, for example that clients and HTTP take
    a part of the same cores. The planner's model stays as it was; the online correction of the
    server sees the same. Sums, as mean TTFT is made of seconds: a short chunk counts for less.
    """
    real: dict[int, float] = {}
    predicted: dict[int, float] = {}
    for size, own_s, predicted_s in _chunk_times(recorded, model, beside):
        real[size] = real.get(size, 0.0) + own_s
        predicted[size] = predicted.get(size, 0.0) + predicted_s
    return model.with_factors({size: real[size] / predicted[size] for size in real})


def chunk_errors(
    recorded: Sequence[Recorded], model: LatencyModel, beside: Beside = NOBODY
) -> np.ndarray:
    """(predicted - real) / real of every chunk's time: the latency model's part of the errors.

    Args:
        beside: what requests that decode on a member took of the chunk's time meanwhile.
    """
    times = _chunk_times(recorded, model, beside)
    return np.array([predicted_s / own_s - 1 for _, own_s, predicted_s in times])


def _chunk_times(
    recorded: Sequence[Recorded], model: LatencyModel, beside: Beside
) -> Iterator[tuple[int, float, float]]:
    """Of each chunk its SP size, its own seconds without decode's part, and the predicted ones."""
    for r in recorded:
        history = r.reused
        for number, ((tokens, group), real_s) in enumerate(zip(r.chunks, r.chunk_s, strict=True)):
            own_s = real_s
            if share := beside.share(r, number):
                own_s *= 1 - share * decoded_beside(recorded, number, r)
            yield len(group), own_s, model.predict(len(group), history, tokens)
            history += tokens
