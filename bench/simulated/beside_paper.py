"""Policies at one simulated load, each at its best improvement rate, beside the paper's policy.

What `late` and `planner_load` share; they differ in what is simulated. The first tenth of the
requests is warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.cli.parser import improvement_rates, integer, positive_numbers
from sglang_cdsp.cli.parser import policies as policy_names
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import summarise
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.tune import IMPROVEMENT_RATES
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import WORKLOADS, poisson

PAPER, LATE = "cdsp-paper", "cdsp-late"
WARM_UP = 0.1
COLUMNS = ("P50", "mean", "P99", "longest wait")

Load = tuple[Request, ...]


@dataclass(frozen=True)
class Runs:
    """The runs of a policy at one load. figures: COLUMNS in seconds, one row a run; (runs, 4)."""

    policy: str
    improvement_rate: float
    figures: np.ndarray

    @property
    def mean(self) -> float:
        """Mean TTFT in seconds over the runs."""
        return float(self.figures[:, 1].mean())

    def ratios(self, other: Runs) -> str:
        """Geometric mean over the runs of self / other, and its standard error."""
        logs = np.log(self.figures / other.figures)
        errors = logs.std(axis=0) / len(logs) ** 0.5
        return "  ".join(
            f"{ratio:.3f}" + (f" +- {error:.3f}" if len(logs) > 1 else "")
            for ratio, error in zip(np.exp(logs.mean(axis=0)), errors, strict=True)
        )


def add_flags(parser: argparse.ArgumentParser, *, policies: str, seeds: int) -> None:
    """The flags of both: policies, loads, improvement rates."""
    add = parser.add_argument
    add("--workload", type=_workloads, default=tuple(WORKLOADS), help=",".join(WORKLOADS))
    add("--rates", type=positive_numbers, help="arrival rates in requests/s; default: per workload")
    add("--policy", type=policy_names, default=policies.split(","), help=f"default: {policies}")
    add(
        "--improvement-rates",
        type=improvement_rates,
        default=IMPROVEMENT_RATES,
        help="which to choose the best of, default: those of the tuner",
    )
    add("--requests", type=integer(1, 1_000_000), default=1500)
    add("--seeds", type=integer(1), default=seeds)


def _workloads(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {known}")
    return names


def drawn(
    args: argparse.Namespace, rates: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, list[Load]]]:
    """The loads that the flags ask for, each with its name: one run a seed."""
    for workload in args.workload:
        for rate in args.rates or rates[workload]:
            seeds = range(args.seeds)
            yield (
                f"{workload} {rate:g}/s",
                [poisson(workload, rate, args.requests, seed) for seed in seeds],
            )


def heading() -> None:
    """The line above what `show` prints."""
    seconds = "".join(f"{name:>9}" for name in ("P50 s", "mean s", "P99 s", "wait s"))
    print(f"{'load':<16}{'policy':<14}{'r':>5}{seconds}   to {PAPER}: {', '.join(COLUMNS)}")


def show(setup: Setup, args: argparse.Namespace, name: str, loads: Sequence[Load]) -> None:
    """One line per policy, with its ratios to the paper's, if that ran before."""
    paper: Runs | None = None
    for runs in _compare(setup, args, loads):
        paper = paper or (runs if runs.policy == PAPER else None)
        seconds = "".join(f"{value:9.3f}" for value in runs.figures.mean(axis=0))
        beside = runs.ratios(paper) if paper and runs is not paper else ""
        print(
            f"{name:<16}{runs.policy:<14}{runs.improvement_rate:5.2f}{seconds}   {beside}",
            flush=True,
        )


def _compare(setup: Setup, args: argparse.Namespace, loads: Sequence[Load]) -> Iterator[Runs]:
    """Every policy at its best rate, then `cdsp-late` at the default rate if it was tried."""
    rates = args.improvement_rates
    for policy in args.policy:
        tried = {}
        for rate in rates:
            chosen = replace(setup, policy=policy, improvement_rate=rate)
            rows = np.array([_figures(chosen, load) for load in loads])
            tried[rate] = Runs(policy, rate, rows)
        best = min(tried.values(), key=lambda runs: runs.mean)
        yield best
        default = tried.get(CdspArgs().improvement_rate, best)
        if policy == LATE and default is not best:
            yield default


def _figures(setup: Setup, load: Load) -> list[float]:
    """COLUMNS of one run."""
    summary = summarise(simulate(setup, load), warm_up=WARM_UP)
    if summary.failed:
        raise SystemExit(f"{summary.failed} requests failed under {setup.policy}")
    return [summary.ttft_s.p50, summary.ttft_s.mean, summary.ttft_s.p99, summary.longest_wait_s]
