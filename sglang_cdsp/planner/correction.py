"""Online correction of the latency model from measured chunk times, with bounds.

Per SP size one factor on Equation 1. A measured chunk moves the logarithm of its size's factor by
`gain` times its error, and that error is first cut to `max_step`, so one outlier changes
a factor by at most `gain * max_step` (default 2 %), whatever it measured; the factor itself stays
within `bound`. All of it shows in `snapshot`.

A machine that is slower than the one that was profiled is so at every size. So the other sizes take
`shared` of each step, too: else a size that was not tried yet keeps the times of the profile, and
looks the better, the slower those that are tried turn out to be. Where only one size is slower, its
own samples and the others' pull apart again until the mean error of each is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang_cdsp.planner.errors import LatencyModelError
from sglang_cdsp.planner.latency import LatencyModel


@dataclass(frozen=True, slots=True)
class CorrectionOptions:
    """The limits of the online correction.

    Attributes:
        gain: share of an error that a sample corrects, in (0, 1].
        max_step: largest log error counted.
        bound: factors stay within [1/bound, bound].
        shared: share of a size's step that all others take, in [0, 1).
        refresh: relative change of a factor that makes `model` a new one (plans stay comparable
            and the planner's tables are not rebuilt after each chunk).
    """

    gain: float = 0.1
    max_step: float = 0.2
    bound: float = 2.0
    refresh: float = 0.01
    shared: float = 0.5

    def __post_init__(self) -> None:
        limits = self.max_step > 0 and self.bound >= 1 and self.refresh >= 0
        if not (0 < self.gain <= 1 and limits and 0 <= self.shared < 1):
            raise LatencyModelError(
                "correction needs gain in (0, 1], max_step > 0, bound >= 1, refresh >= 0 "
                "and shared in [0, 1)"
            )


@dataclass(frozen=True, slots=True)
class SizeCorrection:
    """The correction of one SP size: factor, samples seen and cut, recent error before it."""

    factor: float = 1.0
    samples: int = 0
    cut: int = 0
    error: float = 0.0


class OnlineCorrection:
    """A latency model that learns: measured chunk times in, a corrected `LatencyModel` out."""

    def __init__(self, base: LatencyModel, options: CorrectionOptions | None = None) -> None:
        self._base = base
        self._options = options or CorrectionOptions()
        self._sizes: dict[int, SizeCorrection] = {sp: SizeCorrection() for sp in base.sp_sizes}
        self._applied = dict.fromkeys(base.sp_sizes, 1.0)
        self._model = base
        self._ignored = 0

    @property
    def model(self) -> LatencyModel:
        """The corrected model; the same object until a factor has moved by `refresh`."""
        return self._model

    def observe(self, sp: int, history: int, tokens: int, measured_s: float) -> None:
        """One finished chunk; as a batch of one."""
        self.observe_batch(sp, ((history, tokens),), measured_s)

    def observe_batch(self, sp: int, parts: Sequence[tuple[int, int]], measured_s: float) -> None:
        """One finished forward over `(history, tokens)` of each of its prompts.

        They pay Equation 1's constant once, the rest each for itself. Times that are not positive
        and finite are counted, not used. A size that was never profiled corrects its two
        neighbours, whose rows it is made of.
        """
        if not (parts and math.isfinite(measured_s) and measured_s > 0):
            self._ignored += 1
            return
        row = self._base.coefficients(sp)
        expected = sum(row.predict(history, tokens) for history, tokens in parts)
        expected -= (len(parts) - 1) * row.a
        self._learn(self._neighbours(sp), math.log(measured_s / expected))
        factors = {size: state.factor for size, state in self._sizes.items()}
        if any(
            abs(factors[size] / self._applied[size] - 1) > self._options.refresh for size in factors
        ):
            self._applied = factors
            self._model = self._base.with_factors(factors)

    def snapshot(self) -> dict[str, Any]:
        """Factor, samples, cut samples and mean recent error per SP size, in JSON types."""
        return {
            "ignored": self._ignored,
            "sp": {
                str(size): {
                    "factor": state.factor,
                    "applied": self._applied[size],
                    "samples": state.samples,
                    "cut": state.cut,
                    "mean_abs_error": state.error,
                }
                for size, state in self._sizes.items()
            },
        }

    def _neighbours(self, sp: int) -> tuple[int, ...]:
        if sp in self._sizes:
            return (sp,)
        sizes = self._base.sp_sizes
        return tuple(s for s in (max(s for s in sizes if s < sp), min(s for s in sizes if s > sp)))

    def _learn(self, observed: Sequence[int], log_ratio: float) -> None:
        """Move the sizes that a sample is of, and the others along with them."""
        options, steps = self._options, []
        for size in observed:
            old = self._sizes[size]
            error = log_ratio - math.log(old.factor)
            step = min(max(error, -options.max_step), options.max_step)
            steps.append(step)
            weight = max(options.gain, 1 / (old.samples + 1))
            self._sizes[size] = SizeCorrection(
                self._moved(old.factor, options.gain * step),
                old.samples + 1,
                old.cut + (step != error),
                old.error + weight * (abs(math.expm1(min(error, 50.0))) - old.error),
            )
        along = options.shared * options.gain * sum(steps) / len(steps)
        for size, state in self._sizes.items():
            if size not in observed:
                self._sizes[size] = replace(state, factor=self._moved(state.factor, along))

    def _moved(self, factor: float, by: float) -> float:
        """A factor whose logarithm is moved, within the bound."""
        limit = math.log(self._options.bound)
        return math.exp(min(max(math.log(factor) + by, -limit), limit))
