"""Chunk planners under load: `python bench/planner_load.py`.

The smallest queueing loop that shows what a plan costs those behind it: Poisson arrivals, prompt
lengths drawn from the paper's ranges and means (exponential, cut to the range), every request
planned at its arrival and run exactly as planned, 16 instances, the Table I fit. No memory limit,
no decode, no transfer; the simulator has those. For each arrival rate each policy gets the
improvement rate that gives it the least mean TTFT, as the regulation's table would; `same` compares
the policies at the same improvement rate, worst case over those tried.
"""

from __future__ import annotations

import argparse
import json
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
"""Least, greatest and mean prompt length in k = 1024 tokens (papers.md 1.8)."""
RATES = {"short": (2.0, 3.5, 5.0), "medium": (1.5, 2.5, 3.5), "long": (0.5, 1.0, 1.5, 2.0)}
IMPROVEMENT_RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
INSTANCES = 16
SP_SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Run:
    """TTFT in seconds over one or several runs."""

    p50: float
    mean: float
    p99: float


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
    """Mean over the seeds of P50, mean and P99 TTFT; the first tenth of a run is warm-up."""
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
    return Run(*(float(v) for v in np.mean(rows, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="short,medium,long")
    parser.add_argument("--rates", help="arrival rates in requests/s; default: per workload")
    parser.add_argument("--policy", default="single-chunk,cdsp-paper,cdsp")
    parser.add_argument("--instances-per-node", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON line per row")
    args = parser.parse_args()
    header = "workload  req/s  policy         best r    P50 s   mean s    P99 s"
    if not args.json:
        print(header + "   mean s at r = " + " ".join(f"{r:6.2f}" for r in IMPROVEMENT_RATES))
    for workload in args.workload.split(","):
        rates = [float(r) for r in args.rates.split(",")] if args.rates else RATES[workload]
        for rate in rates:
            for name in args.policy.split(","):
                runs = {r: run(name, workload, rate, r, args) for r in IMPROVEMENT_RATES}
                best = min(runs, key=lambda r: runs[r].mean)
                found = runs[best]
                if args.json:
                    row = {"workload": workload, "rate": rate, "policy": name, "r": best}
                    means = {str(r): runs[r].mean for r in runs}
                    print(json.dumps({**row, **found.__dict__, "means": means}), flush=True)
                    continue
                print(
                    f"{workload:<9}{rate:6.2f}  {name:<13}{best:8.2f} {found.p50:8.3f} "
                    f"{found.mean:8.3f} {found.p99:8.3f}"
                    + " " * 17
                    + " ".join(f"{runs[r].mean:6.2f}" for r in IMPROVEMENT_RATES),
                    flush=True,
                )


if __name__ == "__main__":
    main()
