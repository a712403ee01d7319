"""The flags of the commands that simulate a pool: set-up and requests."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sglang_cdsp.cli.parser import integer, integers, number
from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.planner.measured_range import MeasuredRange
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.traces import read_trace
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import WORKLOADS, arrival_rate, at_speed, poisson

MOST_REQUESTS = 10_000_000
"""Drawn in one run: more is a slip, and would fill the memory."""

MOST_LAYERS = 100_000

MOST_SEED = 1 << 32


@dataclass(frozen=True)
class Source:
    """Requests at any speed: `at(speed, seed)`, where speed 1 means `rate` requests/s.

    Drawn requests have rate 1; those of a trace do not depend on the seed.
    """

    name: str
    rate: float
    at: Callable[[float, int], tuple[Request, ...]]

    def speed(self, rate: float) -> float:
        """The speed that gives `rate` requests/s."""
        if not self.rate:
            raise SetupError(f"{self.name}: all requests arrive at once; give --speed, not a rate")
        return rate / self.rate


def add_pool_flags(parser: argparse.ArgumentParser) -> None:
    """Set-up and requests."""
    default = Setup()
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--trace", type=Path, metavar="FILE", help="Mooncake, Azure, ServeGen or own"
    )
    source.add_argument("--workload", choices=WORKLOADS, help="drawn requests (default: short)")
    add(
        "--requests",
        type=integer(most=MOST_REQUESTS),
        metavar="N",
        help="drawn (default: 1000), or the first N of a trace",
    )
    for name in ("instances", "instances_per_node", "decode_instances"):
        value = getattr(default, name)
        flag = "--" + name.replace("_", "-")
        add(flag, type=integer(), default=value, metavar="N", help=f"default: {value}")
    add(
        "--layers",
        type=integer(1, MOST_LAYERS),
        default=default.layers,
        metavar="N",
        help=f"of the model: a chunk gives way before each (default: {default.layers})",
    )
    add(
        "--preempt-budget",
        type=number(0.0, 100.0),
        default=default.preempt_budget,
        metavar="SHARE",
        help="of its own time, by which prompts that pass may delay a running one; 0: nobody "
        f"passes (default: the server's, {default.preempt_budget:g})",
    )
    add("--latency-model", metavar="FILE", help="default: the Table I fit, LLaMA3-8B on A100")
    add("--sp-sizes", type=integers, metavar="N,N,...", help="default: those of the latency model")
    add(
        "--seed",
        type=integer(0, MOST_SEED),
        default=0,
        metavar="N",
        help="of drawn requests and noise",
    )


def read_setup(options: argparse.Namespace) -> Setup:
    """The set-up that the flags describe; ValueError names the flag that is wrong."""
    model = LatencyModel.load(options.latency_model) if options.latency_model else builtin_model()
    sizes = tuple(sorted(set(options.sp_sizes or model.sp_sizes)))
    if sizes[0] > options.instances >= 1:
        raise SetupError(
            f"SP sizes {list(sizes)} need more than the {options.instances} instances; give "
            "smaller ones with --sp-sizes, or more --instances"
        )
    return Setup(
        model=model,
        sp_sizes=sizes,
        instances=options.instances,
        instances_per_node=options.instances_per_node,
        decode_instances=options.decode_instances,
        layers=options.layers,
        preempt_budget=options.preempt_budget,
        seed=options.seed,
    )


def range_warning(setup: Setup, requests: Iterable[Request]) -> str | None:
    """What to say if the longest prompt is far beyond what the latency model was measured on."""
    return MeasuredRange(setup.model).warning(max(r.prompt_tokens for r in requests))


def read_source(options: argparse.Namespace) -> Source:
    """Where the requests come from; ValueError names the flag or line that is wrong."""
    count = options.requests
    if count is not None and count < 1:
        raise SetupError(f"--requests is {count}; simulate at least one")
    if options.trace is None:
        name, drawn = options.workload or "short", count or 1000
        return Source(name, 1.0, lambda speed, seed: poisson(name, speed, drawn, seed))
    trace = read_trace(options.trace)[:count]
    return Source(options.trace.name, arrival_rate(trace), lambda speed, _: at_speed(trace, speed))
