"""One server of this package beside one of stock SGLang's, both with `--dp-size 2` on two cores.

Many short prompts and some long ones, with output. Both servers stay up; only the one that is
measured runs, the other's processes are stopped. At three rates, and with all requests at once for
the throughput at saturation; in every turn both sides see the same prompts at the same times. On
the torch-only CPU both compute attention the repaired way (`platforms/torch_attention.py`): stock's
own computes each chunk over the whole prompt so far.

    python -m bench.servers.unified [--latency-model FILE] [--rates 0.5,1,1.5] [--seconds 15]
        [--turns 3] [--output-tokens 32] [--stock-flags '--enable-mixed-chunk'] [--out FILE.jsonl]
    python -m bench.servers.unified --read FILE.jsonl

About 8 GB, two minutes of start-up, and eight minutes with the defaults.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.servers.ab import (
    CORES,
    STOCK_CHUNK,
    WARM_UP_SEED,
    arguments_of,
    await_answer,
    described,
    line_of,
    plain,
    read_or_measure,
    say,
    write_dataset,
)
from bench.servers.ab_client import Clients, only
from bench.servers.unified_report import SIDES, report
from sglang_cdsp.cli.parser import OneLineParser, integer, number, positive_numbers
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.stack import RunningStack, one_server, running, single, together

AT_ONCE = float("inf")


class Turns:
    """The comparison on two servers."""

    def __init__(
        self, stack: RunningStack, checkpoint: Path, scratch: Path, output_tokens: int
    ) -> None:
        self._stack, self._checkpoint, self._scratch = stack, checkpoint, scratch
        self._output_tokens = output_tokens
        self._clients = Clients(scratch / "benchmark.log")

    def run(self, side: str, rate: float, count: int, seed: int) -> dict[str, Any]:
        """One run of one side; the line that is kept of it."""
        dataset = self._scratch / f"mix-{seed}-{count}.jsonl"
        if not dataset.exists():
            write_dataset(self._checkpoint, dataset, seed, count)
        arguments = arguments_of(
            self._stack.urls[side],
            self._checkpoint,
            dataset,
            count,
            rate,
            seed,
            self._output_tokens,
        )
        servers = self._stack.servers
        with only([servers[side]], servers.values()):
            roles = {"server": servers[side].members()}
            measured = self._clients.run(arguments, self._scratch / "details.jsonl", roles)
        return line_of(measured, side, rate, plain(shlex.join(arguments), self._scratch))


def measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """All runs: in every turn each rate and all at once, each by both sides, who takes turns."""
    checkpoint = write_checkpoint(scratch / "checkpoint")
    common = ("--dp-size", str(len(CORES)), "--max-total-tokens", "40000")
    pool_flags = (*common, "--cdsp-plan-log", str(scratch / "plans.jsonl"), *options.pool_flags)
    if options.latency_model:
        model = shutil.copyfile(options.latency_model, scratch / "latency-model.json")
        pool_flags = (*pool_flags, "--cdsp-latency-model", str(model))
    stock_flags = (*common, "--chunked-prefill-size", str(STOCK_CHUNK), *options.stock_flags)
    cores = "|".join(CORES)
    plan = together(
        single(checkpoint, flags=stock_flags, cores=cores),
        one_server(checkpoint, flags=pool_flags, cores=cores),
    )
    lines: list[dict[str, Any]] = [
        {"servers": {c.name: plain(described(c), scratch) for c in plan.commands}}
    ]
    rates = [*options.rates, AT_ONCE]
    with running(plan, options.log_directory or scratch / "logs", progress=say) as stack:
        for side in SIDES:
            await_answer(stack.urls[side])
        turns = Turns(stack, checkpoint, scratch, options.output_tokens)
        for side in SIDES:  # first use of buffers and links
            turns.run(side, AT_ONCE, 8, WARM_UP_SEED)
        say(f"warm; {len(SIDES) * len(rates) * options.turns} runs")
        for turn in range(options.turns):
            for position, rate in enumerate(rates):
                count = (
                    options.at_once if rate == AT_ONCE else max(5, round(rate * options.seconds))
                )
                for side in SIDES if (turn + position) % 2 else SIDES[::-1]:
                    line = turns.run(side, rate, count, turn)
                    lines.append({**line, "turn": turn})
                    say(f"turn {turn}, {rate:g}/s, {side}: {line['duration_s']:.1f} s")
                    if options.out:
                        options.out.write_text("".join(json.dumps(x) + "\n" for x in lines))
        if options.plan_log:
            shutil.copyfile(scratch / "plans.jsonl", options.plan_log)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables; or print them again from a file."""
    parser = OneLineParser(prog="python -m bench.servers.unified", description=__doc__)
    add = parser.add_argument
    add("--latency-model", type=Path, help="of `profile`; else the pool measures itself")
    add("--rates", type=positive_numbers, default=(0.5, 1.0, 1.5), help="requests/s")
    add("--seconds", type=number(1.0, 86_400.0), default=15.0, help="of arrivals in each run")
    add("--at-once", type=integer(5), default=25, help="requests of the run at saturation")
    add("--turns", type=integer(1), default=3)
    add("--output-tokens", type=integer(2), default=32)
    add("--pool-flags", type=shlex.split, default=[], help="for the server with --cdsp")
    add("--stock-flags", type=shlex.split, default=[], help="for the stock server")
    add("--out", type=Path, help="every run with its command, JSON lines")
    add("--plan-log", type=Path, help="keep the pool's plan log there, for `replay`")
    add("--read", type=Path, help="only print the tables of such a file")
    add("--log-directory", type=Path, help="keep the servers' logs there")
    options = parser.parse_args(arguments)
    files = ("out", "plan_log")
    print(report(read_or_measure(parser, options, "bench-unified", measure, files)))


if __name__ == "__main__":
    main()
