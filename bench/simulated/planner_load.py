"""Chunk planners under load: `python -m bench.simulated.planner_load`.

The smallest queueing loop that shows what a plan costs those behind it: Poisson arrivals, prompt
lengths drawn from the paper's ranges and means (exponential, cut to the range), every request
planned at its arrival and run exactly as planned, 16 instances, the Table I fit. No memory limit,
no decode, no transfer; the simulator has those. For each arrival rate each policy gets the
improvement rate that gives it the least mean TTFT, as the regulation's table would, and is compared
with the paper's policy seed by seed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from sglang_cdsp.planner import (
    PolicyOptions,
    PoolView,
    PromptView,
    builtin_model,
    make_policy,
)

WORKLOADS = {"short": (4, 95, 23.6), "medium": (8, 142, 32.8), "long": (16, 190, 50.1)}
"""Least, greatest and mean prompt length in k = 1024 tokens."""
RATES = {"short": (2.0, 3.5, 5.0), "medium": (1.5, 2.5, 3.5), "long": (0.5, 1.0, 1.5, 2.0)}
IMPROVEMENT_RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
INSTANCES = 16
SP_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Run:
    """P50, mean and P99 TTFT in seconds, one row per seed: shape (seeds, 3)."""

    ttft_s: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """P50, mean and P99 over the seeds, shape (3,)."""
        averages: np.ndarray = self.ttft_s.mean(axis=0)
        return averages

    def ratio(self, other: Run) -> tuple[np.ndarray, np.ndarray]:
        """Geometric mean over the seeds of self / other, and its standard error; shape (3,)."""
        logs = np.log(self.ttft_s / other.ttft_s)
        return np.exp(logs.mean(axis=0)), logs.std(axis=0) / len(logs) ** 0.5


def draw_lengths(rng: np.random.Generator, workload: str, count: int) -> np.ndarray:
    """Prompt lengths in tokens: low + an exponential, cut at the range, with the given mean."""
    low, high, mean = WORKLOADS[workload]
    width = high - low
    scale_low, scale_high = 1e-3, 1e4
    for _ in range(100):
        scale = (scale_low * scale_high) ** 0.5
        if low + scale - width / np.expm1(width / scale) < mean:
            scale_low = scale
        else:
            scale_high = scale
    drawn = low - scale * np.log1p(-rng.random(count) * (1 - np.exp(-width / scale)))
    return (drawn * 1024).astype(int)


def run(
    policy_name: str, workload: str, rate: float, improvement_rate: float, args: argparse.Namespace
) -> Run:
    """One run per seed; the first tenth of the requests is warm-up."""
    policy = make_policy(
        policy_name,
        PolicyOptions(builtin_model(), SP_SIZES, improvement_rate=improvement_rate),
    )
    rows = []
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        lengths = draw_lengths(rng, workload, args.requests).tolist()
        arrivals = np.cumsum(rng.exponential(1 / rate, args.requests)).tolist()
        free_at = [0.0] * INSTANCES
        ttft = np.empty(args.requests)
        for index, (now, tokens) in enumerate(zip(arrivals, lengths, strict=True)):
            queue = tuple(max(0.0, t - now) for t in free_at)
            pool = PoolView(queue, None, args.instances_per_node)
            plan = policy.plan(PromptView(str(index), tokens), pool)
            assert plan is not None
            for i in plan.instances:
                free_at[i] = now + plan.ttft_s
            ttft[index] = plan.ttft_s
        kept = ttft[args.requests // 10 :]
        rows.append((np.median(kept), kept.mean(), np.percentile(kept, 99)))
    return Run(np.array(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="short,medium,long")
    parser.add_argument("--rates", help="arrival rates in requests/s; default: per workload")
    parser.add_argument("--policy", default="cdsp-paper,cdsp,single-chunk")
    parser.add_argument("--instances-per-node", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    print(
        f"{'workload':<9}{'req/s':>6}  {'policy':<13}{'best r':>7}{'P50 s':>9}{'mean s':>9}"
        f"{'P99 s':>9}   to cdsp-paper, each at its best r: P50, mean, P99 (+- standard error)"
    )
    for workload in args.workload.split(","):
        rates = [float(r) for r in args.rates.split(",")] if args.rates else RATES[workload]
        for rate in rates:
            best: dict[str, Run] = {}
            for name in args.policy.split(","):
                runs = {r: run(name, workload, rate, r, args) for r in IMPROVEMENT_RATES}
                r = min(runs, key=lambda r: float(runs[r].means[1]))
                best[name] = runs[r]
                numbers = "".join(f"{value:9.3f}" for value in runs[r].means)
                print(
                    f"{workload:<9}{rate:6.2f}  {name:<13}{r:7.2f}{numbers}"
                    f"   {beside(runs[r], best.get('cdsp-paper'))}",
                    flush=True,
                )


def beside(mine: Run, paper: Run | None) -> str:
    """The ratios to the paper's policy, if that ran before."""
    if paper is None or mine is paper:
        return ""
    ratios, errors = mine.ratio(paper)
    return "  ".join(f"{v:.3f} +- {e:.3f}" for v, e in zip(ratios, errors, strict=True))


if __name__ == "__main__":
    main()
