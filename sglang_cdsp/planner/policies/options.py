"""What every policy is made from."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_cdsp.planner.correction import OnlineCorrection
from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.prefixes.copies import CopyCost, CopyCosts
from sglang_cdsp.planner.regulator import Regulator
from sglang_cdsp.planner.types import PrefixSource

DEFAULT_IMPROVEMENT_RATE = 0.1
"""Where no user gave one: of the server, and of the commands that plan as it does."""

DEFAULT_MIN_CHUNK = 256
"""Fewest tokens in any chunk but the last where no user gave a number."""

DEFAULT_SPREAD_COST = 0.05
"""`spread_cost` where no user gave one."""

DEFAULT_PREEMPT_BUDGET = 0.2
"""`preempt_budget` where no user gave one."""


@dataclass(frozen=True)
class PolicyOptions:
    """The options of a policy; one that has no use for an option ignores it.

    Attributes:
        model: Equation 1.
        sp_sizes: candidate SP sizes, ascending (any integers the model covers).
        page_size: KV page in tokens; chunk boundaries are multiples of it.
        min_chunk: fewest tokens in any chunk but the last.
        improvement_rate: used when there is no `regulator`.
        regulator: with one, the improvement rate and the SP sizes come from it.
        correction: the model corrected online, if given.
        spread_cost: by which fraction `cdsp` reckons a chunk slower if its group touches more
            nodes than its size needs; the latency model does not see nodes.
        preempt_budget: by which share of its own time a running prompt may be delayed by prompts
            that pass it, in all; 0 = nobody passes.
        prefixes: who has what of a prompt cached; without it nothing is reused.
        copy_costs: what it takes to copy a cached prefix; without it none is copied.
    """

    model: LatencyModel
    sp_sizes: tuple[int, ...]
    page_size: int = 1
    min_chunk: int = DEFAULT_MIN_CHUNK
    improvement_rate: float = 0.0
    regulator: Regulator | None = None
    correction: OnlineCorrection | None = None
    spread_cost: float = DEFAULT_SPREAD_COST
    preempt_budget: float = DEFAULT_PREEMPT_BUDGET
    prefixes: PrefixSource | None = None
    copy_costs: CopyCosts | None = None

    def __post_init__(self) -> None:
        sizes = self.sp_sizes
        if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise OptionError(
                f"SP sizes {list(sizes)} must be positive, unique and ascending; give e.g. 1,2,4"
            )
        for size in sizes:
            self.model.coefficients(size)
        if self.page_size < 1:
            raise OptionError(f"page size is {self.page_size}; it must be at least 1")
        if self.min_chunk < 1:
            raise OptionError(f"minimum chunk is {self.min_chunk}; it must be at least 1 token")
        if not 0 <= self.improvement_rate < 1:
            raise OptionError(f"improvement rate is {self.improvement_rate}; it must be in [0, 1)")
        if not 0 <= self.spread_cost <= 100:
            raise OptionError(f"spread cost is {self.spread_cost}; it must be in [0, 100]")
        if not 0 <= self.preempt_budget <= 100:
            raise OptionError(f"preempt budget is {self.preempt_budget}; it must be in [0, 100]")

    def current_copy_cost(self) -> CopyCost | None:
        """What it takes to copy a cached prefix now; None where none is copied."""
        return self.copy_costs() if self.copy_costs is not None else None

    def current_model(self) -> LatencyModel:
        """The model to plan with, corrected if there is a correction."""
        return self.correction.model if self.correction else self.model

    def current_sizes(self) -> tuple[int, ...]:
        """The candidate SP sizes now."""
        return self.regulator.sp_sizes if self.regulator else self.sp_sizes

    def current_rate(self) -> float:
        """The improvement rate now."""
        return self.regulator.rate if self.regulator else self.improvement_rate


def default_sp_sizes(instances: int) -> tuple[int, ...]:
    """The candidate SP sizes of a pool where none are named: powers of two up to its instances."""
    return tuple(2**k for k in range(instances.bit_length()) if 2**k <= instances)
