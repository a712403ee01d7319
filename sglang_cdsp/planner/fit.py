"""Fitting Equation 1 to measured chunk times, and how far off the fit is.

Relative least squares: the sum of ((predicted - measured) / measured)^2, so that a 50 ms chunk
counts as much as a 50 s one. Coefficients are kept >= 0 (a time that falls with tokens would send
the planner astray); with five of them at most every choice of which stay at 0 is simply tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_cdsp.planner.errors import LatencyModelError
from sglang_cdsp.planner.latency import Coefficients, LatencyModel

LEAST_SLOPE = 1e-12
"""Seconds per token where the samples show no growth at all: a plan needs some."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured chunk: SP size, history and chunk length in tokens, seconds."""

    sp: int
    history: int
    tokens: int
    seconds: float

    def __post_init__(self) -> None:
        if self.sp < 1 or self.history < 0 or self.tokens < 1:
            raise LatencyModelError(f"sample {self} needs sp >= 1, history >= 0 and tokens >= 1")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise LatencyModelError(f"sample {self}: seconds must be positive; measure it again")


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """Relative error |predicted - measured| / measured over some samples of one SP size."""

    sp: int
    samples: int
    mean: float
    maximum: float
    worst: Sample

    def to_dict(self) -> dict[str, Any]:
        """As it stands under `fit` of a latency model file."""
        return {
            "samples": self.samples,
            "mean_relative_error": self.mean,
            "max_relative_error": self.maximum,
            "worst": {
                "history": self.worst.history,
                "tokens": self.worst.tokens,
                "seconds": self.worst.seconds,
            },
        }


def split_grid(samples: Iterable[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(fit, held out): every second grid point per SP size, in a checkerboard of the grid.

    The extremes of each axis can fall in either half, as in the paper, which fits on the 16k steps
    of an 8k grid.
    """
    points = tuple(samples)
    fit: list[Sample] = []
    held: list[Sample] = []
    for sp in sorted({p.sp for p in points}):
        mine = [p for p in points if p.sp == sp]
        histories = sorted({p.history for p in mine})
        lengths = sorted({p.tokens for p in mine})
        for p in sorted(mine, key=lambda p: (p.history, p.tokens)):
            even = (histories.index(p.history) + lengths.index(p.tokens)) % 2 == 0
            (fit if even else held).append(p)
    return tuple(fit), tuple(held)


def fit_coefficients(samples: Sequence[Sample], *, expands: bool = False) -> Coefficients:
    """Relative least squares over samples of one SP size.

    Without any history among the samples c cannot be seen and is set to 2 d, the value that
    conserves quadratic work when a prompt is split: `c = 2 d`.

    Args:
        samples: of one SP size.
        expands: whether history costs something of its own (`e`), as with latent attention; else
            it is 0, and noise cannot be taken for it.
    """
    seen_history = any(p.history for p in samples)
    expands = expands and seen_history
    unknowns = 3 + seen_history + expands
    points = {(p.history, p.tokens) for p in samples}
    if len({length for _, length in points}) < 3 or len(points) < unknowns:
        raise LatencyModelError(
            f"{len(points)} grid points with {len({length for _, length in points})} chunk lengths "
            f"cannot fix {unknowns} coefficients; measure at least 3 lengths and 2 histories"
        )
    times = np.array([p.seconds for p in samples])
    length = np.array([float(p.tokens) for p in samples])
    history = np.array([float(p.history) for p in samples])
    columns = [np.ones_like(length), length, length * length]
    if seen_history:
        columns.append(history * length)
    if expands:
        columns.append(history)
    design = np.stack(columns, axis=1) / times[:, None]
    scale = np.abs(design).max(axis=0)
    found = _non_negative(design / scale, np.ones_like(times)) / scale
    a, b, d = (float(v) for v in found[:3])
    if b + d == 0:
        b = LEAST_SLOPE
    e = float(found[4]) if expands else 0.0
    return Coefficients(a, b, float(found[3]) if seen_history else 2 * d, d, e)


def relative_errors(model: LatencyModel, samples: Iterable[Sample]) -> tuple[ErrorReport, ...]:
    """One report per SP size among the samples, ascending."""
    points = tuple(samples)
    reports = []
    for sp in sorted({p.sp for p in points}):
        errors = [
            (abs(model.predict(sp, p.history, p.tokens) / p.seconds - 1), p)
            for p in points
            if p.sp == sp
        ]
        worst = max(errors, key=lambda pair: pair[0])
        mean = sum(error for error, _ in errors) / len(errors)
        reports.append(ErrorReport(sp, len(errors), mean, worst[0], worst[1]))
    return tuple(reports)


def fit_model(
    samples: Iterable[Sample],
    *,
    model: str,
    device: str,
    tp_size: int = 1,
    expands: bool = False,
) -> tuple[LatencyModel, tuple[ErrorReport, ...]]:
    """Fits on half the grid; reports the error on the other half and keeps it in `fit`.

    The coefficients returned are the ones that were judged: the held-out half stays out.

    Args:
        samples: of any SP sizes.
        model, device, tp_size: what was measured, for the file.
        expands: see `fit_coefficients`.
    """
    fit, held = split_grid(samples)
    if not fit or not held:
        raise LatencyModelError("too few samples to hold half of them out; measure a larger grid")
    rows = tuple(
        (sp, fit_coefficients([p for p in fit if p.sp == sp], expands=expands))
        for sp in sorted({p.sp for p in fit})
    )
    fitted = LatencyModel(rows, model, device, tp_size)
    reports = relative_errors(fitted, held)
    about = {
        "method": "relative least squares on half the grid, coefficients >= 0",
        "fit_samples": len(fit),
        "held_out": {str(report.sp): report.to_dict() for report in reports},
    }
    return LatencyModel(rows, model, device, tp_size, about), reports


def _non_negative(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares solution with every entry >= 0, by trying each set of free entries."""
    count = design.shape[1]
    best, best_error = np.zeros(count), math.inf
    for chosen in range(1, count + 1):
        for free in itertools.combinations(range(count), chosen):
            part = np.linalg.lstsq(design[:, free], target, rcond=None)[0]
            if (part < 0).any():
                continue
            error = float(((design[:, free] @ part - target) ** 2).sum())
            if error < best_error:
                best, best_error = np.zeros(count), error
                best[list(free)] = part
    return best
