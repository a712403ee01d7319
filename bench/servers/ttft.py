"""TTFT of one long prompt on the prefill server alone: 1 instance, 2 instances, stock SGLang.

Each instance has one core. Both sides run in the same process on the same machine, one server
after the other, and every figure is a median.

    python -m bench.servers.ttft [--tokens 8000] [--repeats 5] [--family deepseek-v3]
                                 [--out build/ttft.json]
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench.servers.flags import check
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.family_checkpoints import RECIPES, write_family_checkpoint
from sglang_cdsp.testing.first_token import Plan, post_prompt, prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import prefill_only, running

MOST_TOKENS = 65_000
"""The checkpoint's context ends a little above, and a family's at half of it."""

SMALLEST_VOCABULARY = 2000
"""Token ids that every checkpoint here has, beside the first five."""


def ttft(url: str, tokens: int, seed: int, plan: Plan | None) -> float:
    """Seconds from sending a prompt to its first token's answer."""
    ids = [5 + token % SMALLEST_VOCABULARY for token in prompt_tokens(seed, tokens)]
    start = time.perf_counter()
    post_prompt(url, ids, plan=plan).raise_for_status()
    return time.perf_counter() - start


def series(url: str, tokens: int, plans: Sequence[Plan | None], repeats: int) -> list[list[float]]:
    """Interleaved repeats of every plan, after one warm-up each."""
    found: list[list[float]] = [[] for _ in plans]
    for repeat in range(repeats + 1):
        for times, plan in zip(found, plans, strict=True):
            seconds = ttft(url, tokens, repeat, plan)
            if repeat:
                times.append(seconds)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both servers and print the table."""
    parser = OneLineParser(prog="python -m bench.servers.ttft", description=__doc__)
    parser.add_argument("--tokens", type=integer(2, MOST_TOKENS), default=8000)
    parser.add_argument("--repeats", type=integer(1), default=5)
    parser.add_argument("--out", type=Path, metavar="FILE", help="every time, JSON")
    parser.add_argument("--family", choices=tuple(RECIPES), help="another kind of model")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    tokens = options.tokens
    more = RECIPES[options.family].flags if options.family else ()
    with kept_on_failure("bench-ttft") as scratch:
        checkpoint = scratch / "checkpoint"
        if options.family:
            write_family_checkpoint(checkpoint, options.family)
        else:
            write_checkpoint(checkpoint)
        flags = ("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans")
        pool = prefill_only(checkpoint, flags=(*flags, *more))
        with running(pool, scratch / "pool") as stack:
            plans: list[Plan | None] = [[(tokens, [0])], [(tokens, [0, 1])]]
            plans.append([(tokens // 2, [0]), (tokens - tokens // 2, [0, 1])])
            one, two, grown = series(stack.url, tokens, plans, options.repeats)
        # One forward for the prompt, as in the pool: without a decode server stock does not get
        # past the first chunk of a prompt that is longer than its chunk size.
        one_chunk = ("--chunked-prefill-size", str(2 * tokens), *more)
        plan = prefill_only(checkpoint, flags=one_chunk, cpus=(0,))
        with running(plan, scratch / "stock") as stack:
            (stock,) = series(stack.url, tokens, [None], options.repeats)
    base = statistics.median(stock)
    rows = {
        "stock SGLang, one core": stock,
        "--cdsp, 1 instance": one,
        "--cdsp, 2 instances": two,
        "--cdsp, half on 1, half on 2": grown,
    }
    print(f"TTFT of {tokens} tokens, median of {options.repeats}, {platform.processor() or 'CPU'}")
    for name, times in rows.items():
        median = statistics.median(times)
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"  {name:30s} {median:6.2f} s  ({spread})  {median / base:5.2f} x stock")
    if options.out:
        options.out.write_text(json.dumps({"tokens": tokens, "seconds": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
