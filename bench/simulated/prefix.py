"""Cached prefixes, simulated: TTFT with and without reuse, and beside cache-aware routing.

    python -m bench.simulated.prefix [--trace FILE] [--workload documents,conversations]
        [--instances 16] [--roles 12p4d] [--requests 2000] [--seeds 5] [--rate R]

One server, LLaMA3-8B on A100s (the Table I fit; the step-time model is reckoned). The rate is the
highest that is stable without reuse: by bisection, the highest at which the requests of a run's
second half have a mean TTFT of at most 1.5 times that of those of its first half (where queues grow
without end it is three times); or `--rate`. At it runs `cdsp-late` without reuse, with it but
without copies from one instance to another, with both, `cdsp` with both, and `cache-aware` routing
of whole prompts to one instance each. No prompt passes another. Every seed draws the noise of chunk
times anew, and of drawn workloads the requests, too; a trace has the requests that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sglang_cdsp.cli.parser import OneLineParser, integer, number
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import ttfts
from sglang_cdsp.simulator.one_server import OneServer, parse_roles
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.sharing import Conversations, Documents, conversations, questions
from sglang_cdsp.simulator.sweep import UNIFIED_DECODE, highest
from sglang_cdsp.simulator.traces import read_trace
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import arrival_rate, at_speed

BLOCK = 512
STABLE = 1.5
NOISE = 0.05

Drawn = Callable[[float, int], tuple[Request, ...]]
"""`(rate, seed)`: the requests."""


@dataclass(frozen=True)
class Kind:
    """What runs: a policy, with or without cached prefixes, with or without copies of them."""

    name: str
    policy: str
    reuses: bool
    copies: bool = True


WITHOUT = Kind("cdsp-late, no reuse", "cdsp-late", reuses=False)
KINDS = (
    WITHOUT,
    Kind("cdsp-late, no copies", "cdsp-late", reuses=True, copies=False),
    Kind("cdsp-late", "cdsp-late", reuses=True),
    Kind("cdsp", "cdsp", reuses=True),
    Kind("cache-aware, replicas", "cache-aware", reuses=True),
)


def setup_of(kind: Kind, instances: int, seed: int, form: OneServer) -> Setup:
    """The simulated server."""
    sizes = tuple(size for size in (1, 2, 4, 8, 16) if size <= instances)
    return Setup(
        policy=kind.policy,
        sp_sizes=sizes,
        instances=instances,
        decode_instances=0,
        decode=UNIFIED_DECODE,
        one_server=form,
        improvement_rate=0.1,
        prefix_cache=kind.reuses,
        prefix_copies=kind.copies,
        cache_block=BLOCK,
        noise=NOISE,
        seed=seed,
        preempt_budget=0.0,
    )


def stable(result: Result) -> bool:
    """Whether the queue does not grow from the run's first half to its second."""
    half = len(result.records) // 2
    first, second = result.records[:half], result.records[half:]
    return bool(ttfts(second).mean() <= STABLE * ttfts(first).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each source of requests."""
    parser = OneLineParser(prog="python -m bench.simulated.prefix", description=__doc__)
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="with Mooncake's hash_ids")
    add("--workload", default="documents,conversations")
    add("--instances", type=integer(1, 128), default=16)
    add("--roles", default="", help="as --cdsp-roles")
    add("--requests", type=integer(50, 100_000), default=2000, help="of each run")
    add("--seeds", type=integer(1, 100), default=5)
    add("--rate", type=number(1e-3, 1e6), default=None, help="requests/s")
    options = parser.parse_args(arguments)
    count = options.requests
    sources: dict[str, Drawn] = {
        "documents": lambda rate, seed: questions(rate, count, seed, Documents(), BLOCK),
        "conversations": lambda rate, seed: conversations(
            rate, count, seed, Conversations(), BLOCK
        ),
    }
    chosen = options.workload.split(",")
    if options.trace is not None:
        trace = read_trace(options.trace)[:count]
        recorded = arrival_rate(trace)
        sources[options.trace.stem] = lambda rate, seed: at_speed(trace, rate / recorded)
        chosen = [options.trace.stem]
    for name in chosen:
        form = OneServer(parse_roles(options.roles, options.instances) if options.roles else ())
        compare(name, sources[name], options.instances, options.seeds, options.rate, form)


def compare(
    name: str, drawn: Drawn, instances: int, seeds: int, rate: float | None, form: OneServer
) -> None:
    """Print the figures of one source of requests."""
    if rate is None:
        rate = highest(
            lambda tried: stable(simulate(setup_of(WITHOUT, instances, 0, form), drawn(tried, 0))),
            precision=0.05,
        )
    print(f"{name}: {instances} instances, {rate:.2f} requests/s, stable without reuse")
    print("                        mean TTFT s, by seed                        of no reuse  reused")
    base: list[float] = []
    for kind in KINDS:
        results = [
            simulate(setup_of(kind, instances, seed, form), drawn(rate, seed))
            for seed in range(seeds)
        ]
        means = [float(ttfts(result.records).mean()) for result in results]
        base = base or means
        ratios = [mine / theirs for mine, theirs in zip(means, base, strict=True)]
        prompts = sum(r.request.prompt_tokens for result in results for r in result.records)
        share = sum(result.reused_tokens for result in results) / prompts
        copied = sum(result.copied_tokens for result in results)
        failed = sum(bool(r.error) for result in results for r in result.records)
        print(
            f"{kind.name:22}  {' '.join(f'{mean:8.3f}' for mean in means)}  "
            f"{np.mean(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})  {share:5.1%}"
            + (f"  {copied / prompts:5.1%} copied" if copied else "")
            + (f"  {failed} failed" if failed else "")
        )


if __name__ == "__main__":
    main()
