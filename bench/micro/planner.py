"""Planning time per prompt, from Python's side of the call: `python -m bench.micro.planner`.

For each pool size, 1,000 seeded random pool states are planned with the policy's own `plan` call
after warm-up, in one process; prints mean, P50, P99 and maximum in microseconds. SP sizes are the
powers of two up to the pool. Table I ends at SP 16, so larger sizes are extrapolated from it here,
with the work halved and the step cost doubled per doubling; that is for timing only.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence

import numpy as np

from sglang_cdsp.cli.parser import OneLineParser, integer, number, policies, positive_integers
from sglang_cdsp.planner import (
    Coefficients,
    LatencyModel,
    PolicyOptions,
    PoolView,
    PromptView,
    builtin_model,
    default_sp_sizes,
    make_policy,
)

POOLS = (8, 16, 32, 64, 128)
PAPER_US = {
    8: (22.8, 52.5),
    16: (25.8, 86.8),
    32: (22.9, 53.4),
    64: (24.9, 45.1),
    128: (30.6, 73.7),
}
"""The paper's C++ scheduler: average and maximum by largest SP size."""


def extended_model(largest: int) -> LatencyModel:
    """The Table I fit, with SP sizes doubled up to `largest`."""
    base = builtin_model()
    rows = list(base.rows)
    while rows[-1][0] < largest:
        size, row = rows[-1]
        rows.append((2 * size, Coefficients(2 * row.a, row.b / 2, row.c / 2, row.d / 2)))
    return LatencyModel(tuple(rows), base.model, base.device)


def random_states(
    instances: int, count: int, seed: int, *, per_node: int = 8, limited: bool = False
) -> list[tuple[PromptView, PoolView]]:
    """Prompts of 4k to 256k tokens (log-uniform) on pools of which a random part is busy 0-2.5 s.

    `limited` gives every instance a random number of free KV slots, so that memory matters.
    """
    rng = np.random.default_rng(seed)
    states = []
    for index in range(count):
        busy = rng.random(instances) < rng.random()
        queue = tuple(float(q) for q in rng.uniform(0, 2.5, instances) * busy)
        tokens = int(1024 * 2 ** rng.uniform(2, 8))
        free = tuple(int(f) for f in rng.integers(20_000, 200_000, instances)) if limited else None
        states.append((PromptView(str(index), tokens), PoolView(queue, free, per_node)))
    return states


def measure(
    policy_name: str,
    instances: int,
    *,
    count: int,
    seed: int,
    rate: float,
    limited: bool,
    clock: Callable[[], int],
    repeats: int,
) -> dict[str, float]:
    """Microseconds per plan over the random states, by the given nanosecond clock."""
    model = extended_model(instances)
    policy = make_policy(
        policy_name, PolicyOptions(model, default_sp_sizes(instances), improvement_rate=rate)
    )
    states = random_states(instances, count, seed, limited=limited)
    for prompt, pool in states[:100]:
        policy.plan(prompt, pool)
    measured = np.empty((repeats, count))
    gc.collect()
    for repeat in range(repeats):
        for index, (prompt, pool) in enumerate(states):
            begin = clock()
            policy.plan(prompt, pool)
            measured[repeat, index] = (clock() - begin) / 1000
    times = measured.min(axis=0)
    return {
        "mean": float(times.mean()),
        "p50": float(np.percentile(times, 50)),
        "p99": float(np.percentile(times, 99)),
        "max": float(times.max()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for every policy and pool, or one JSON object."""
    parser = OneLineParser(
        prog="python -m bench.micro.planner", description=__doc__.splitlines()[0]
    )
    chosen = ("cdsp", "cdsp-paper", "single-chunk")
    parser.add_argument("--policy", type=policies, default=chosen, help="NAME,NAME,...")
    parser.add_argument("--pools", type=positive_integers, default=POOLS, help="N,N,...")
    parser.add_argument("--states", type=integer(1, 1_000_000), default=1000)
    parser.add_argument("--seed", type=integer(0, 1 << 32), default=0)
    parser.add_argument("--improvement-rate", type=number(0.0, 0.999), default=0.0)
    parser.add_argument("--limited-memory", action="store_true", help="give instances few KV slots")
    parser.add_argument(
        "--repeats",
        type=integer(1),
        default=1,
        help="plan every state so often and count its least time: takes out the machine's noise",
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="count the thread's CPU time, not wall time: for machines that do other work too",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args(arguments)
    results = {
        name: {
            pool: measure(
                name,
                pool,
                count=args.states,
                seed=args.seed,
                rate=args.improvement_rate,
                limited=args.limited_memory,
                repeats=args.repeats,
                clock=time.thread_time_ns if args.cpu else time.perf_counter_ns,
            )
            for pool in args.pools
        }
        for name in args.policy
    }
    if args.json:
        print(json.dumps(results))
        return
    print("policy        instances  mean us   p50 us   p99 us   max us   paper mean / max")
    for name, pools in results.items():
        for pool, us in pools.items():
            row = "".join(f"{us[key]:9.1f}" for key in ("mean", "p50", "p99", "max"))
            paper = PAPER_US.get(pool)
            beside = f"{paper[0]:8.1f} / {paper[1]:.1f}" if paper else ""
            print(f"{name:<13} {pool:>9}{row}   {beside}")


if __name__ == "__main__":
    main()
