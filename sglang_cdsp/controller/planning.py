"""The planner as one server uses it: policy, corrected latency model, regulation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.planner.correction import OnlineCorrection
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.policies import Policy, PolicyOptions, make_policy
from sglang_cdsp.planner.regulator import Regulation, Regulator, parse_regulation


@dataclass(frozen=True)
class Planning:
    """What plans a pool's requests.

    Attributes:
        policy: decides.
        correction: the latency model, corrected from measured chunk times.
        regulator: the improvement rate, by arrival rate.
    """

    policy: Policy
    correction: OnlineCorrection
    regulator: Regulator

    @property
    def model(self) -> LatencyModel:
        """The latency model in force."""
        return self.correction.model

    def observe(self, size: int, history: int, tokens: int, seconds: float) -> None:
        """Learn from a chunk that ran; sizes outside the profiled ones teach nothing."""
        if self.model.sp_sizes[0] <= size <= self.model.sp_sizes[-1]:
            self.correction.observe(size, history, tokens, seconds)

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
            "waiting": len(self.policy.waiting()),
            "latency_model": self.model.to_json(),
            "correction": self.correction.snapshot(),
            "regulation": self.regulator.snapshot(now_s),
        }


def make_planning(
    args: CdspArgs, model: LatencyModel, sizes: tuple[int, ...], page_size: int
) -> Planning:
    """Put a server's planner together.

    Raises:
        PlannerError: an option does not fit the model; names the remedy.
    """
    regulation = Regulation(mapping=((0.0, args.improvement_rate),), sp_sizes=sizes)
    if args.improvement_rates is not None:
        mapping = read_rates(Path(args.improvement_rates))
        regulation = parse_regulation({"improvement_rate_mapping": mapping}, regulation, sizes)
    regulator = Regulator(regulation, allowed_sizes=sizes)
    correction = OnlineCorrection(model)
    options = PolicyOptions(
        model=model,
        sp_sizes=sizes,
        page_size=page_size,
        min_chunk=args.min_chunk,
        improvement_rate=args.improvement_rate,
        regulator=regulator,
        correction=correction,
    )
    return Planning(make_policy(args.policy, options), correction, regulator)


def read_rates(path: Path) -> Mapping[str, Any]:
    """Read a table of improvement rates: the mapping itself, or an object that holds one.

    Raises:
        ValueError: not JSON; names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--cdsp-improvement-rates {path}: not JSON: {error}") from error
    if isinstance(data, dict) and "improvement_rate_mapping" in data:
        data = data["improvement_rate_mapping"]
    return data
