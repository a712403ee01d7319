"""The planner as one server uses it: policy, corrected latency model, regulation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.controller.policy_guard import GuardedPolicy
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.planner.correction import OnlineCorrection
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.measured_range import MeasuredRange
from sglang_cdsp.planner.policies import PolicyOptions, make_policy
from sglang_cdsp.planner.prefixes.copies import CopyTimes
from sglang_cdsp.planner.regulator import Regulator, make_regulator, read_rates

logger = logging.getLogger(__name__)

INSTEAD = "single-chunk"
"""The policy that takes over from one that raises."""


@dataclass(frozen=True)
class Planning:
    """What plans a pool's requests.

    Attributes:
        policy: decides.
        correction: the latency model, corrected from measured chunk times.
        regulator: the improvement rate, by arrival rate.
        measured: which prompts the latency model was measured on.
        source: where the latency model comes from, as it follows the words "latency model".
        prefixes: what is cached where; None where nothing is reused.
        copies: what it takes to copy a cached prefix; None where none is copied.
    """

    policy: GuardedPolicy
    correction: OnlineCorrection
    regulator: Regulator
    measured: MeasuredRange
    source: str = ""
    prefixes: PoolPrefixes | None = None
    copies: CopyTimes | None = None

    @property
    def model(self) -> LatencyModel:
        """The latency model in force."""
        return self.correction.model

    def observe(self, size: int, history: int, tokens: int, seconds: float) -> None:
        """Learn from a chunk that ran; sizes outside the profiled ones teach nothing."""
        if self.model.sp_sizes[0] <= size <= self.model.sp_sizes[-1]:
            self.correction.observe(size, history, tokens, seconds)

    def observe_batch(self, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """Learn from a batch on one instance: ``(history, tokens)`` of each request in it."""
        if self.model.sp_sizes[0] == 1:
            self.correction.observe_batch(1, parts, seconds)

    def watch(self, tokens: int) -> None:
        """Warn once when a prompt is far beyond what the latency model was measured on."""
        warning = self.measured.warning(tokens)
        if warning:
            logger.warning("%s", warning)

    def update(self, body: Any) -> None:
        """Change the regulation at run time.

        Raises:
            ValueError: the body is refused, and everything stays as it was.
        """
        self.regulator.update(body)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """For status pages, JSON-ready."""
        return {
            "policy": self.policy.name,
            "policy_error": self.policy.error,
            "waiting": len(self.policy.waiting()),
            "latency_model": self.model.to_json(),
            "latency_model_source": self.source,
            "correction": self.correction.snapshot(),
            "regulation": self.regulator.snapshot(now_s),
        }


def make_planning(
    args: CdspArgs,
    model: LatencyModel,
    sizes: tuple[int, ...],
    page_size: int,
    source: str = "",
    prefixes: PoolPrefixes | None = None,
    copies: CopyTimes | None = None,
) -> Planning:
    """Put a server's planner together.

    Args:
        source: where the latency model comes from.
        prefixes: from which plans may start; None where nothing is reused.
        copies: what it takes to copy those; None where none is copied.

    Raises:
        PlannerError: an option does not fit the model; names the remedy.
    """
    table = None
    if args.improvement_rates is not None:
        table = read_rates(Path(args.improvement_rates), "--cdsp-improvement-rates")
    regulator = make_regulator(sizes, args.improvement_rate, table)
    correction = OnlineCorrection(model)
    options = PolicyOptions(
        model=model,
        sp_sizes=sizes,
        page_size=page_size,
        min_chunk=args.min_chunk,
        preempt_budget=args.preempt_budget,
        improvement_rate=args.improvement_rate,
        regulator=regulator,
        correction=correction,
        prefixes=prefixes.held if prefixes is not None else None,
        copy_costs=copies.cost if copies is not None else None,
    )
    policy = GuardedPolicy(make_policy(args.policy, options), lambda: make_policy(INSTEAD, options))
    measured = MeasuredRange(model)
    return Planning(policy, correction, regulator, measured, source, prefixes, copies)
