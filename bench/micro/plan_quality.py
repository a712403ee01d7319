"""How far plans are from the best possible: `python -m bench.micro.plan_quality`.

For seeded random states of a pool and several prompt lengths, each policy's TTFT at improvement
rate 0 is compared with the optimum over nested groups and free chunk lengths. The optimum ignores
nodes (any instances may form a group), so of two groups of one size the one with the shortest
queues is never worse, and the chain of sizes and the lengths are all there is to search. That is
done without the planner's insights: a table over a grid of prompt positions,

    f[s][p] = min over s' < s, p' < p of max(f[s'][p'], free[s]) + T_s(p', p - p')

is filled in exhaustively; the best chain of every last size is then refined by moving chunk
boundaries with a shrinking step down to one token.

`independent` states draw each instance's queue alone; `grouped` ones draw it for runs of 1, 2, 4 or
8 instances, as plans leave them. Pools are flat (one node) or have nodes of 8, where the paper's
GetGroup stays inside nodes and `cdsp` weighs straddling them (--spread-cost).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from sglang_cdsp.cli.parser import OneLineParser, integer, number, policies, positive_integers
from sglang_cdsp.planner import (
    LatencyModel,
    PolicyOptions,
    PoolView,
    PromptView,
    builtin_model,
    make_policy,
)

INSTANCES = 16
SP_SIZES = (1, 2, 4, 8, 16)
LENGTHS_K = (8, 16, 32, 64, 128, 190)


@njit(cache=True)
def _seconds(row: Any, history: float, tokens: float) -> float:
    return row[0] + tokens * (row[1] + row[2] * history + row[3] * tokens)


@njit(cache=True)
def _chain_end(coef: Any, free: Any, chain: Any, ends: Any) -> float:
    """When a chain of sizes with chunk boundaries `ends` finishes."""
    clock, placed = 0.0, 0.0
    for at in range(len(chain)):
        s = chain[at]
        clock = max(clock, free[s]) + _seconds(coef[s], placed, ends[at] - placed)
        placed = ends[at]
    return clock


@njit(cache=True)
def optimum(coef: Any, free: Any, tokens: int, grid: int) -> float:
    """The least TTFT in seconds. coef: f8[m, 4]; free: f8[m], when each size is free at best."""
    m, step = len(free), tokens / grid
    table = np.full((m, grid + 1), np.inf)
    came_size = np.full((m, grid + 1), -1)
    came_at = np.zeros((m, grid + 1), np.int64)
    for s in range(m):
        for p in range(1, grid + 1):
            table[s, p] = free[s] + _seconds(coef[s], 0.0, p * step)
            for before in range(s):
                for q in range(1, p):
                    start = max(table[before, q], free[s])
                    end = start + _seconds(coef[s], q * step, (p - q) * step)
                    if end < table[s, p]:
                        table[s, p] = end
                        came_size[s, p], came_at[s, p] = before, q
    best = np.inf
    for s in range(m):
        chain, ends = np.empty(m, np.int64), np.empty(m)
        at, size, p = m, s, grid
        while size >= 0:
            at -= 1
            chain[at], ends[at] = size, p * step
            size, p = came_size[size, p], came_at[size, p]
        chain, ends = chain[at:], ends[at:]
        end = _chain_end(coef, free, chain, ends)
        move = step
        while move >= 0.5:
            better = False
            for boundary in range(len(chain) - 1):
                for sign in (-1.0, 1.0):
                    moved = ends.copy()
                    moved[boundary] += sign * move
                    low = moved[boundary - 1] if boundary > 0 else 0.0
                    if low < moved[boundary] < moved[boundary + 1]:
                        found = _chain_end(coef, free, chain, moved)
                        if found < end:
                            end, ends, better = found, moved, True
            if not better:
                move /= 2
        best = min(best, end)
    return best


def random_queue(rng: np.random.Generator, kind: str) -> tuple[float, ...]:
    """Queue seconds of 16 instances: a random part of them busy for up to 2.5 s."""
    share = rng.random()
    if kind == "independent":
        queue = rng.uniform(0, 2.5, INSTANCES) * (rng.random(INSTANCES) < share)
        return tuple(float(q) for q in queue)
    runs: list[float] = []
    while len(runs) < INSTANCES:
        width = int(rng.choice((1, 2, 4, 8)))
        runs += [float(rng.uniform(0, 2.5) * (rng.random() < share))] * width
    return tuple(runs[:INSTANCES])


def gaps(kind: str, per_node: int, args: argparse.Namespace) -> dict[str, dict[int, np.ndarray]]:
    """Relative gap to the optimum, per policy and prompt length in k tokens."""
    model: LatencyModel = builtin_model()
    names = args.policy
    options = PolicyOptions(model, SP_SIZES, spread_cost=args.spread_cost)
    policies = {name: make_policy(name, options) for name in names}
    rows = [model.coefficients(s) for s in SP_SIZES]
    coef = np.array([(r.a, r.b, r.c, r.d) for r in rows])
    lengths = args.lengths
    out = {name: {k: np.empty(args.states) for k in lengths} for name in names}
    rng = np.random.default_rng(args.seed)
    for state in range(args.states):
        queue = random_queue(rng, kind)
        free = np.array([sorted(queue)[s - 1] for s in SP_SIZES])
        pool = PoolView(queue, None, per_node)
        for k in lengths:
            best = optimum(coef, free, k * 1024, args.grid)
            for name, policy in policies.items():
                plan = policy.plan(PromptView("quality", k * 1024), pool)
                assert plan is not None
                out[name][k][state] = plan.ttft_s / best - 1
    return out


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, P90, P99 and worst gap in percent."""
    p90, p99 = np.percentile(values, (90, 99))
    numbers = (values.mean(), p90, p99, values.max())
    return {
        name: round(100 * float(v), 3)
        for name, v in zip(("mean", "p90", "p99", "max"), numbers, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for every kind of states, policy and length."""
    parser = OneLineParser(
        prog="python -m bench.micro.plan_quality", description=__doc__.splitlines()[0]
    )
    chosen = ("single-chunk", "cdsp-paper", "cdsp")
    parser.add_argument("--policy", type=policies, default=chosen, help="NAME,NAME,...")
    parser.add_argument("--states", type=integer(1, 1_000_000), default=1000)
    parser.add_argument("--lengths", type=positive_integers, default=LENGTHS_K, help="k tokens")
    parser.add_argument("--seed", type=integer(0, 1 << 32), default=0)
    parser.add_argument(
        "--grid", type=integer(2), default=256, help="prompt positions in the table"
    )
    parser.add_argument("--spread-cost", type=number(0.0, 100.0), default=0.0)
    parser.add_argument("--json", action="store_true", help="one JSON line per row")
    args = parser.parse_args(arguments)
    if not args.json:
        print("states       nodes of  prompt k  policy         mean %    p90 %    p99 %    max %")
    for kind in ("independent", "grouped"):
        for per_node in (16, 8):
            found = gaps(kind, per_node, args)
            for name, by_length in found.items():
                pooled = np.concatenate(list(by_length.values()))
                for k, values in [*by_length.items(), ("all", pooled)]:
                    row = summary(values)
                    if args.json:
                        about = {"states": kind, "per_node": per_node, "k": k, "policy": name}
                        print(json.dumps({**about, **row}), flush=True)
                        continue
                    print(
                        f"{kind:<13}{per_node:>8}{k:>10}  {name:<13}"
                        + "".join(f"{v:9.2f}" for v in row.values()),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
