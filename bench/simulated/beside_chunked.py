"""One server against chunked prefill, simulated: TTFT of long prompts at the same gaps of decode.

Long prompts come one after the other while every instance decodes five requests. Stock replicas run
them in chunks of several sizes, in mixed iterations, each prompt on one instance; one server runs
them on SP groups, decode steps between the stretches of a chunk, at several decode shares. For each
chunk size the share is taken whose gaps beside the prompts are no longer in P99, and of these the
one with the least TTFT. LLaMA3-8B on A100s, one a instance: the Table I fit, and a step-time model
that is reckoned (`sglang_cdsp.simulator.sweep.UNIFIED_DECODE`).

    python -m bench.simulated.beside_chunked [--instances 4,8] [--tokens 65536] [--prompts 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.servers.beside import beside
from sglang_cdsp.cli.parser import OneLineParser, integer, positive_integers, positive_numbers
from sglang_cdsp.simulator.chunked import simulate_chunked
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import token_gaps
from sglang_cdsp.simulator.one_server import OneServer
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.sweep import UNIFIED_DECODE
from sglang_cdsp.simulator.types import Record, Request

EACH = 5
RUNNING_TOKENS, RUNNING_OUTPUT = 1000, 6000
FIRST_S, EVERY_S = 5.0, 20.0
"""Arrivals of long prompts: in between, each of them has ended."""


@dataclass(frozen=True)
class Found:
    """TTFT of the long prompts, mean; gaps of running requests beside them, P99: seconds."""

    ttft_s: float
    gap_s: float


def requests(instances: int, tokens: int, prompts: int) -> list[Request]:
    """Those that decode, then the long prompts."""
    running = [
        Request(f"running-{n}", n * 0.01, RUNNING_TOKENS, RUNNING_OUTPUT)
        for n in range(EACH * instances)
    ]
    long = [Request(f"long-{n}", FIRST_S + n * EVERY_S, tokens, 1) for n in range(prompts)]
    return [*running, *long]


def found(result: Result, *, everywhere: bool) -> Found:
    """The figures of a run. everywhere: a prompt runs on all instances, else on its own."""
    running = [r for r in result.records if r.request.rid.startswith("running")]
    long = [r for r in result.records if r.request.rid.startswith("long")]
    gaps = []
    for prompt in long:
        start_s, ttft_s = prompt.request.arrival_s, prompt.ttft_s
        assert ttft_s is not None
        here = {i for chunk in prompt.chunks for i in chunk.instances}
        gaps += [
            beside(token_times(r), start_s, start_s + ttft_s)
            for r in running
            if everywhere or r.decode_instance in here
        ]
    ttfts = [prompt.ttft_s or 0.0 for prompt in long]
    return Found(float(np.mean(ttfts)), float(np.percentile(np.concatenate(gaps), 99)))


def token_times(record: Record) -> np.ndarray:
    """When each token of a request came, seconds; shape (output tokens,)."""
    assert record.first_token_s is not None
    return record.first_token_s + np.concatenate(([0.0], np.cumsum(token_gaps([record]))))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for every size of pool."""
    parser = OneLineParser(prog="python -m bench.simulated.beside_chunked", description=__doc__)
    add = parser.add_argument
    add("--instances", type=positive_integers, default=(4, 8), help="of the pool")
    add("--tokens", type=integer(1000, 200_000), default=65_536, help="of a long prompt")
    add("--prompts", type=integer(1, 100), default=3)
    add("--chunks", type=positive_integers, default=(256, 512, 1024, 2048, 4096, 8192))
    add("--shares", type=positive_numbers, default=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5))
    options = parser.parse_args(arguments)
    for instances in options.instances:
        work = requests(instances, options.tokens, options.prompts)
        base = Setup(
            policy="cdsp",
            sp_sizes=tuple(s for s in (1, 2, 4, 8, 16) if s <= instances),
            instances=instances,
            decode_instances=0,
            decode=UNIFIED_DECODE,
            improvement_rate=0.0,
        )
        ours = {
            share: found(
                simulate(replace(base, one_server=OneServer(decode_share=share)), work),
                everywhere=True,
            )
            for share in options.shares
        }
        print(f"{instances} instances, prompts of {options.tokens} tokens")
        print("chunk    gap P99    TTFT   | share   gap P99    TTFT   | TTFT over stock's")
        for tokens in options.chunks:
            stock = found(simulate_chunked(base, work, tokens), everywhere=False)
            line = f"{tokens:5d} {stock.gap_s:8.3f} s {stock.ttft_s:6.2f} s"
            kept = {share: mine for share, mine in ours.items() if mine.gap_s <= stock.gap_s}
            if not kept:
                print(f"{line} | no share has such short gaps")
                continue
            share = min(kept, key=lambda share: kept[share].ttft_s)
            mine = kept[share]
            print(
                f"{line} | {share:5.2f} {mine.gap_s:8.3f} s {mine.ttft_s:6.2f} s | "
                f"{mine.ttft_s / stock.ttft_s:.2f}"
            )


if __name__ == "__main__":
    main()
