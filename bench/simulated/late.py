"""Waiting unbound against binding at arrival: `python -m bench.simulated.late [--trace FILE]`.

Simulates `cdsp-paper`, `cdsp` and `cdsp-late` on the paper's set-up (16 prefill instances in nodes
of 8, 2 decode instances, KV limits and transfers, the Table I fit) near the knee of each drawn
workload, or of a recorded trace replayed at several speeds. Each policy gets the improvement rate
that gives it the least mean TTFT at that load, as the regulation's table would; `cdsp-late` is also
shown at the server's default rate at every load. The first tenth of the requests is warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import summarise, ttfts
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.traces import read_trace
from sglang_cdsp.simulator.tune import IMPROVEMENT_RATES
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import at_speed, poisson

RATES = {
    "short": (3.5, 4.5, 5.0),
    "medium": (2.0, 3.0, 3.25),
    "long": (1.0, 1.5, 1.75),
}
PAPER, LATE = "cdsp-paper", "cdsp-late"
WARM_UP = 0.1
COLUMNS = ("P50", "mean", "P99", "longest wait")


@dataclass(frozen=True)
class Runs:
    """A policy at one load. figures: COLUMNS in seconds, one row per run; shape (runs, 4)."""

    policy: str
    improvement_rate: float
    figures: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.figures[:, 1].mean())

    def ratios(self, other: Runs) -> str:
        """Geometric mean over the runs of self / other, and its standard error."""
        logs = np.log(self.figures / other.figures)
        errors = logs.std(axis=0) / len(logs) ** 0.5
        return "  ".join(
            f"{ratio:.3f}" + (f" +- {error:.3f}" if len(logs) > 1 else "")
            for ratio, error in zip(np.exp(logs.mean(axis=0)), errors, strict=True)
        )


def figures(setup: Setup, requests: tuple[Request, ...]) -> list[float]:
    """COLUMNS of one run."""
    result = simulate(setup, requests)
    summary = summarise(result, warm_up=WARM_UP)
    if summary.failed:
        raise SystemExit(f"{summary.failed} requests failed under {setup.policy}")
    times = ttfts(result.records[int(len(requests) * WARM_UP) :])
    p50, p99 = np.percentile(times, (50, 99))
    return [float(p50), float(times.mean()), float(p99), summary.longest_wait_s]


def compare(
    policies: list[str], rates: list[float], loads: list[tuple[Request, ...]]
) -> Iterator[Runs]:
    """Every policy at its best rate, then `cdsp-late` at the default rate if it was tried."""
    for policy in policies:
        tried = {
            rate: Runs(
                policy,
                rate,
                np.array([figures(Setup(policy=policy, improvement_rate=rate), r) for r in loads]),
            )
            for rate in rates
        }
        best = min(tried.values(), key=lambda runs: runs.mean)
        yield best
        default = tried.get(CdspArgs().improvement_rate, best)
        if policy == LATE and default is not best:
            yield default


def show(
    load: str, policies: list[str], rates: list[float], loads: list[tuple[Request, ...]]
) -> None:
    """One line per policy, with its ratios to the paper's."""
    paper: Runs | None = None
    for runs in compare(policies, rates, loads):
        paper = paper or (runs if runs.policy == PAPER else None)
        seconds = "".join(f"{value:9.3f}" for value in runs.figures.mean(axis=0))
        beside = runs.ratios(paper) if paper and runs is not paper else ""
        print(
            f"{load:<16}{runs.policy:<12}{runs.improvement_rate:5.2f}{seconds}   {beside}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="short,medium,long")
    parser.add_argument("--rates", help="arrival rates in requests/s; default: per workload")
    parser.add_argument("--trace", help="a recorded trace in place of the drawn workloads")
    parser.add_argument("--speeds", default="3,3.5", help="how many times as fast to replay it")
    parser.add_argument("--policy", default="cdsp-paper,cdsp,cdsp-late")
    parser.add_argument(
        "--improvement-rates",
        default=",".join(map(str, IMPROVEMENT_RATES)),
        help="which to choose the best of, default: those of the tuner",
    )
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    policies = args.policy.split(",")
    tried = [float(rate) for rate in args.improvement_rates.split(",")]
    heading = "".join(f"{name:>9}" for name in ("P50 s", "mean s", "P99 s", "wait s"))
    print(f"{'load':<16}{'policy':<12}{'r':>5}{heading}   to {PAPER}: {', '.join(COLUMNS)}")
    if args.trace:
        recorded = read_trace(Path(args.trace))
        for speed in map(float, args.speeds.split(",")):
            show(f"trace x{speed:g}", policies, tried, [at_speed(recorded, speed)])
        return
    for workload in args.workload.split(","):
        rates = [float(r) for r in args.rates.split(",")] if args.rates else RATES[workload]
        for rate in rates:
            loads = [poisson(workload, rate, args.requests, seed) for seed in range(args.seeds)]
            show(f"{workload} {rate:g}/s", policies, tried, loads)


if __name__ == "__main__":
    main()
