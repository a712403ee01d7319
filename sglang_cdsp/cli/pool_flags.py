"""The flags of the commands that simulate a pool: set-up and requests."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sglang_cdsp.cli.parser import MOST_TOKENS, integer, integers, number
from sglang_cdsp.planner.decode_price import USUAL_SHARE
from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.planner.measured_range import MeasuredRange
from sglang_cdsp.planner.stretches import LEAST_SHARE, MOST_SHARE
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.one_server import OneServer, parse_roles
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.sharing import Conversations, Documents, conversations, questions
from sglang_cdsp.simulator.sweep import UNIFIED_DECODE
from sglang_cdsp.simulator.traces import read_trace
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.workload import WORKLOADS, arrival_rate, at_speed, poisson

MOST_REQUESTS = 10_000_000
"""Drawn in one run: more is a slip, and would fill the memory."""

MOST_LAYERS = 100_000

MOST_SEED = 1 << 32

SHARED = ("conversations", "documents")
"""Workloads whose prompts share prefixes."""

BLOCK = Setup.cache_block


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
    source.add_argument(
        "--workload", choices=(*WORKLOADS, *SHARED), help="drawn requests (default: short)"
    )
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
    add(
        "--one-server",
        action="store_true",
        help="instances decode what they prefill, as `--cdsp` without --disaggregation-mode; "
        "there are no decode instances then",
    )
    add(
        "--prefix-cache",
        action="store_true",
        help="instances keep what they have computed, and plans reuse it; prompts of Mooncake's "
        "trace and of the workloads conversations and documents share prefixes",
    )
    add_form_flags(parser)
    add("--latency-model", metavar="FILE", help="default: the Table I fit, LLaMA3-8B on A100")
    add("--sp-sizes", type=integers, metavar="N,N,...", help="default: those of the latency model")
    add(
        "--seed",
        type=integer(0, MOST_SEED),
        default=0,
        metavar="N",
        help="of drawn requests and noise",
    )


def add_form_flags(parser: argparse.ArgumentParser) -> None:
    """What the one-server form has beside a pool before decode instances."""
    default, add = OneServer(), parser.add_argument
    add("--roles", metavar="NpMd", help="N instances only prefill, M only decode (default: none)")
    add(
        "--decode-share",
        type=number(LEAST_SHARE, MOST_SHARE),
        metavar="SHARE",
        help="of an instance's time beside a chunk that decode gets (default: as the server's, "
        f"{USUAL_SHARE} while as many requests decode as prompts wait, less where more wait)",
    )
    add(
        "--stock-tokens",
        type=integer(1, MOST_TOKENS),
        metavar="TOKENS",
        help="longest one-instance prompt that does not give way "
        f"(default: the server's, {default.stock_tokens})",
    )
    add(
        "--decode-model",
        type=decode_model,
        metavar="A,B,C",
        help="seconds of a decode step: A + B * requests + C * KV tokens (default: reckoned for "
        "LLaMA3-8B, on one GPU in one server, else on eight)",
    )


def decode_model(text: str) -> DecodeModel:
    """`0.014,1e-4,8.7e-8`: an argparse type."""
    try:
        a, b, c = map(float, text.split(","))
        return DecodeModel(a, b, c)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {error}; give three numbers of seconds like 0.014,1e-4,8.7e-8"
        ) from None


def read_form(options: argparse.Namespace, instances: int, *, one_server: bool) -> OneServer | None:
    """The one-server form that the flags describe, None without it.

    Raises:
        SetupError: flags of it without it, or roles that are none.
    """
    names = ("roles", "decode_share", "stock_tokens")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not one_server:
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise SetupError(f"{flags}: only in one server; add --one-server or remove them")
        return None
    if "roles" in given:
        given["roles"] = parse_roles(given["roles"], instances)
    return OneServer(**given)


def read_setup(options: argparse.Namespace) -> Setup:
    """The set-up that the flags describe; ValueError names the flag that is wrong."""
    model = LatencyModel.load(options.latency_model) if options.latency_model else builtin_model()
    sizes = tuple(sorted(set(options.sp_sizes or model.sp_sizes)))
    if sizes[0] > options.instances >= 1:
        raise SetupError(
            f"SP sizes {list(sizes)} need more than the {options.instances} instances; give "
            "smaller ones with --sp-sizes, or more --instances"
        )
    form = read_form(options, options.instances, one_server=options.one_server)
    decode = options.decode_model or (UNIFIED_DECODE if form else DecodeModel())
    return Setup(
        model=model,
        one_server=form,
        prefix_cache=options.prefix_cache,
        decode=decode,
        sp_sizes=sizes,
        instances=options.instances,
        instances_per_node=options.instances_per_node,
        decode_instances=0 if form else options.decode_instances,
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
        if name == "conversations":
            shape = Conversations()
            return Source(
                name, 1.0, lambda speed, seed: conversations(speed, drawn, seed, shape, BLOCK)
            )
        if name == "documents":
            return Source(
                name, 1.0, lambda speed, seed: questions(speed, drawn, seed, Documents(), BLOCK)
            )
        return Source(name, 1.0, lambda speed, seed: poisson(name, speed, drawn, seed))
    trace = read_trace(options.trace)[:count]
    return Source(options.trace.name, arrival_rate(trace), lambda speed, _: at_speed(trace, speed))
