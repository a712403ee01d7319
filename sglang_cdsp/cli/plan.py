"""``python -m sglang_cdsp plan``: plan one prompt at a given pool state and say why."""

from __future__ import annotations

import argparse
import json
import sys
import time

from sglang_cdsp.cli.parser import MOST, MOST_TOKENS, integer, integers, numbers
from sglang_cdsp.planner.errors import OptionError, PlannerError
from sglang_cdsp.planner.explanation import chunk_table, considered_table, gantt
from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.planner.measured_range import MeasuredRange
from sglang_cdsp.planner.policies import (
    DEFAULT_POLICY,
    POLICY_HELP,
    Policy,
    PolicyOptions,
    make_policy,
)
from sglang_cdsp.planner.policies.options import (
    DEFAULT_IMPROVEMENT_RATE,
    DEFAULT_MIN_CHUNK,
    DEFAULT_SPREAD_COST,
)
from sglang_cdsp.planner.types import Considered, HeldPrefix, Plan, PoolView, PromptView


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    tokens, page = integer(most=MOST_TOKENS), integer(most=MOST)
    rate, least, spread = DEFAULT_IMPROVEMENT_RATE, DEFAULT_MIN_CHUNK, DEFAULT_SPREAD_COST
    add("--latency-model", metavar="FILE", help="default: the Table I fit, LLaMA3-8B on A100")
    add("--tokens", type=tokens, required=True, metavar="N", help="uncached prompt tokens")
    add(
        "--queue",
        type=numbers,
        required=True,
        metavar="S,...",
        help="remaining work of each instance in seconds; 0*8,0.31*8 repeats",
    )
    add("--history", type=tokens, default=0, metavar="H", help="cached tokens in front")
    add("--history-instances", type=integers, default=(), metavar="I,...", help="their holders")
    add(
        "--cached",
        type=prefixes,
        default=(),
        metavar="I:T,...",
        help="instance I has the first T of --tokens cached: the plan may start from there",
    )
    add("--sp-sizes", type=integers, metavar="S,...", help="default: the model's, up to the pool")
    add("--instances-per-node", type=page, default=8, metavar="N", help="default 8")
    add(
        "--free-tokens",
        type=integers,
        metavar="T,...",
        help="free KV slots of each instance, or one number for all; default: no limit",
    )
    add("--down", type=integers, default=(), metavar="I,...", help="instances that are down")
    add("--improvement-rate", type=float, default=rate, metavar="R", help=f"default {rate:g}")
    add("--min-chunk", type=tokens, default=least, metavar="M", help=f"tokens, default {least}")
    add("--page-size", type=page, default=1, metavar="P", help="KV page in tokens, default 1")
    add("--spread-cost", type=float, default=spread, metavar="F", help=f"default {spread:g}")
    add(
        "--policy", default=DEFAULT_POLICY, metavar="NAME", help=f"{POLICY_HELP} ({DEFAULT_POLICY})"
    )
    add("--json", action="store_true", help="print one JSON object")


def prefixes(text: str) -> tuple[HeldPrefix, ...]:
    """`2:32000,0:16000`: an argparse type."""
    found = []
    for part in text.split(","):
        instance, colon, tokens = part.partition(":")
        if not (colon and instance.isdecimal() and tokens.isdecimal() and int(tokens)):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no cached prefix; give instance and tokens like 2:32000"
            )
        found.append(HeldPrefix(int(instance), min(int(tokens), MOST_TOKENS)))
    return tuple(sorted(found, key=lambda prefix: -prefix.tokens))


def run(options: argparse.Namespace) -> int:
    """Prints the plan. Exit status 1: the prompt must wait; 2: a flag or file is wrong."""
    try:
        model = (
            LatencyModel.load(options.latency_model) if options.latency_model else builtin_model()
        )
        policy, prompt, pool = _read(options, model)
        plan, considered = policy.explain(prompt, pool)
        planning_us = _planning_us(policy, prompt, pool)
    except PlannerError as error:
        print(f"python -m sglang_cdsp plan: {error}", file=sys.stderr)
        return 2
    warning = MeasuredRange(model).warning(prompt.tokens + prompt.history_tokens)
    if warning:
        print(f"python -m sglang_cdsp plan: {warning}", file=sys.stderr)
    if options.json:
        print(json.dumps(_object(policy, plan, considered, planning_us)))
    else:
        print(_text(policy, prompt, pool, plan, considered, planning_us))
    return 0 if plan else 1


def _read(options: argparse.Namespace, model: LatencyModel) -> tuple[Policy, PromptView, PoolView]:
    """Policy, prompt and pool from the flags; PlannerError names the flag that is wrong."""
    queue: tuple[float, ...] = options.queue
    n = len(queue)
    if min(queue) < 0:
        raise OptionError(f"--queue: {min(queue):g} is negative; give remaining work in seconds")
    if options.tokens < 1:
        raise OptionError(f"--tokens is {options.tokens}; plan at least one uncached token")
    for flag, instances in (
        ("--history-instances", options.history_instances),
        ("--down", options.down),
        ("--cached", [prefix.instance for prefix in options.cached]),
    ):
        for i in instances:
            if not 0 <= i < n:
                raise OptionError(f"{flag}: {i} is not one of the {n} instances of --queue")
    for prefix in options.cached:
        if prefix.tokens >= options.tokens or prefix.tokens % options.page_size:
            raise OptionError(
                f"--cached: {prefix.tokens} tokens of {options.tokens}; give whole pages of "
                f"{options.page_size}, and leave at least one token to compute"
            )
    free = options.free_tokens
    if free is not None and len(free) == 1:
        free = free * n
    if free is not None and (len(free) != n or min(free) < 0):
        raise OptionError(
            f"--free-tokens: give one number >= 0, or one for each of the {n} instances of --queue"
        )
    sizes = options.sp_sizes or tuple(s for s in model.sp_sizes if s <= n)
    if not sizes or max(sizes) > n:
        raise OptionError(f"--sp-sizes: {list(sizes)} do not fit a pool of {n} instances")
    policy = make_policy(
        options.policy,
        PolicyOptions(
            model,
            tuple(sorted(set(sizes))),
            page_size=options.page_size,
            min_chunk=options.min_chunk,
            improvement_rate=options.improvement_rate,
            spread_cost=options.spread_cost,
            prefixes=(lambda rid: options.cached) if options.cached else None,
        ),
    )
    up = tuple(i not in options.down for i in range(n)) if options.down else None
    prompt = PromptView("prompt", options.tokens, options.history, options.history_instances)
    return policy, prompt, PoolView(queue, free, options.instances_per_node, up)


def _planning_us(policy: Policy, prompt: PromptView, pool: PoolView) -> float:
    """Microseconds of a plan as a server makes it, after one that warms the caches."""
    policy.plan(prompt, pool)
    begin = time.perf_counter_ns()
    policy.plan(prompt, pool)
    return (time.perf_counter_ns() - begin) / 1000


def _object(
    policy: Policy, plan: Plan | None, considered: tuple[Considered, ...], planning_us: float
) -> dict[str, object]:
    return {
        "policy": policy.name,
        "ttft_s": plan.ttft_s if plan else None,
        "single_chunk_ttft_s": plan.single_chunk_ttft_s if plan else None,
        "reused": plan.reused if plan else 0,
        "choice": plan.choice if plan else "",
        "chunks": [chunk.to_dict() for chunk in plan.chunks] if plan else [],
        "planning_us": planning_us,
        "considered": [candidate.to_dict() for candidate in considered],
    }


def _text(
    policy: Policy,
    prompt: PromptView,
    pool: PoolView,
    plan: Plan | None,
    considered: tuple[Considered, ...],
    planning_us: float,
) -> str:
    history = ""
    if prompt.history_tokens:
        holders = ",".join(map(str, prompt.history_instances))
        history = f" after {prompt.history_tokens} cached on {holders}"
    blocks = [
        f"{prompt.tokens} tokens{history}; {pool.size} instances in nodes of "
        f"{pool.instances_per_node}; policy {policy.name}"
    ]
    if plan is None:
        blocks[0] += "\nmust wait: no group can run it now"
    else:
        single = plan.single_chunk_ttft_s
        beside = f" ({single:.3f} s as one chunk)" if single is not None else ""
        blocks[0] += f"\nTTFT {plan.ttft_s:.3f} s{beside}; planned in {planning_us:.0f} us"
        if plan.choice:
            blocks[0] += f"\n{plan.choice}"
        blocks.append(chunk_table(plan))
    blocks += [gantt(plan, pool), considered_table(considered)]
    return "\n\n".join(blocks)
