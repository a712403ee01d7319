"""A/B on real servers: SGLang as it is, and this package's policies, on the same two cores.

Stock SGLang runs as two prefill servers, one core each, behind SGLang's router (`--dp-size 2` does
not disaggregate in the pinned release). Every policy runs as one prefill server with two
instances, one core each, behind a router of its own. All share checkpoint and decode server, and
SGLang's own benchmark drives them through the router with many short prompts and some long ones.
All servers stay up; only the one that is measured runs, the others' processes are stopped.

    python -m bench.servers.ab --latency-model FILE [--policies cdsp-paper,fixed-sp:2,...]
        [--rates 1,2,3] [--seconds 20] [--repeats 3] [--stock-chunks 4096] [--out FILE.jsonl]

Stock's chunk size is given to it, not left to it: `--stock-chunks 2048,4096,8192 --policies ''`
measures several, and the first one named is what the others are compared with. On the CPU platform
the attention of a prompt costs the same at any size (`bench.micro.torch_attention`: 575 to 605 ms
for 8,000 tokens at 512 to 8,192), so what is left to the size is how many prompts share a forward;
the default is SGLang's own.

Decode has a core of its own where the machine has more than two, else prefill gives way to it, for
all sides alike.

About 4 GB for decode and stock, and 3.5 GB a policy; about a minute of start-up a policy.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests

from bench.servers.ab_client import BENCHMARK, Clients, Measured, only
from bench.servers.ab_report import Slo, report
from bench.servers.flags import check
from bench.servers.mix import lengths
from sglang_cdsp.cli.parser import (
    OneLineParser,
    integer,
    number,
    policies,
    positive_integers,
    positive_numbers,
)
from sglang_cdsp.stack.processes import Command
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.prompts import cut_prompts
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import RunningStack, Side, running, side_by_side

STOCK = "stock"
STOCK_CHUNK = 4096
CORES = ("0", "1")
WARM_UP_SEED = 1000
ROUTER_READY_S = 90.0
# Health checks would find the stopped servers ill.
ROUTER = ["--policy", "power_of_two", "--disable-health-check", "--log-level", "warn"]
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


def sides(
    policies: Sequence[str], pool_flags: Sequence[str], plan_logs: Path, stock_chunks: Sequence[int]
) -> list[Side]:
    """Stock at each chunk size, and each policy; nobody keeps a prefix cache: the pool has none."""
    common = ("--disable-radix-cache", "--max-total-tokens", "40000")
    found = []
    for index, tokens in enumerate(stock_chunks):
        stock = (*common, "--chunked-prefill-size", str(tokens))
        name = f"{STOCK}-{tokens}" if index else STOCK
        found.append(Side(name, (stock,) * len(CORES), CORES))
    for policy in policies:
        flags = (
            *(*common, "--cdsp", "--dp-size", str(len(CORES)), "--cdsp-policy", policy),
            *("--cdsp-plan-log", str(plan_logs / f"{policy}.jsonl")),
            *pool_flags,
        )
        found.append(Side(policy, (flags,), ("|".join(CORES),)))
    return found


def write_dataset(checkpoint: Path, path: Path, seed: int, count: int) -> None:
    """Prompts of the mix as the benchmark's `custom` dataset."""
    prompts = cut_prompts(checkpoint, lengths(seed, count))
    rows = [{"conversations": [{"content": text}, {"content": "-"}]} for text in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def arguments_of(
    url: str, checkpoint: Path, dataset: Path, count: int, rate: float, seed: int, output: int
) -> list[str]:
    """The benchmark's arguments, but for where it writes."""
    return [
        *("--backend", "sglang", "--base-url", url),
        *("--model", str(checkpoint), "--tokenizer", str(checkpoint)),
        *("--dataset-name", "custom", "--dataset-path", str(dataset)),
        *("--sharegpt-output-len", str(output), "--num-prompts", str(count)),
        *("--request-rate", f"{rate:g}", "--seed", str(seed), "--warmup-requests", "1"),
        *("--ready-check-timeout-sec", "0", "--disable-tqdm"),
    ]


class Comparison:
    """The comparison on one stack: runs sides in turn and keeps what came of it."""

    def __init__(
        self, stack: RunningStack, checkpoint: Path, scratch: Path, options: argparse.Namespace
    ) -> None:
        self._stack, self._checkpoint = stack, checkpoint
        self._scratch, self._options = scratch, options
        self._clients = Clients(scratch / "benchmark.log")

    def run(self, side: Side, rate: float, count: int, seed: int) -> dict[str, Any]:
        """One run of one side; the line that is kept of it."""
        dataset = self._scratch / f"mix-{seed}-{count}.jsonl"
        if not dataset.exists():
            write_dataset(self._checkpoint, dataset, seed, count)
        url = self._stack.urls[side.name]
        arguments = arguments_of(
            url, self._checkpoint, dataset, count, rate, seed, self._options.output_tokens
        )
        servers = self._stack.servers
        prefill = [servers[f"{side.name}-{number}"] for number in range(len(side.prefill))]
        decode, router = servers["decode"], servers[f"{side.name}-router"]
        roles = {
            "prefill": [pid for server in prefill for pid in server.members()],
            "decode": decode.members(),
            "router": router.members(),
        }
        with only([*prefill, decode, router], servers.values()):
            measured = self._clients.run(arguments, self._scratch / "details.jsonl", roles)
        return line_of(measured, side.name, rate, plain(shlex.join(arguments), self._scratch))


def line_of(measured: Measured, side: str, rate: float, arguments: str) -> dict[str, Any]:
    """The line that is kept of a run; lists have an entry a request, times are seconds."""
    details = measured.details
    gaps = [statistics.fmean(itls) if itls else 0.0 for itls in details["itls"]]
    ends = zip(details["ttfts"], details["itls"], strict=True)
    return {
        "side": side,
        "rate": rate,
        "command": f"python -m {BENCHMARK} {arguments}",
        "duration_s": details["duration"],
        "wall_s": measured.wall_s,
        "cpu_s": {**measured.cpu_s, "cores": os.cpu_count() or 1},
        "tokens": details["input_lens"],
        "ttft_s": [round(ttft, 4) for ttft in details["ttfts"]],
        "tpot_s": [round(gap, 4) for gap in gaps],
        "end_s": [round(ttft + sum(itls), 4) for ttft, itls in ends],
        "errors": details["errors"],
    }


def warn_of_shared_cores(more: str) -> None:
    """Say so where the kernel shares cores out by session; ``more``: what that does here."""
    if AUTOGROUP.exists() and AUTOGROUP.read_text().strip() != "0":
        say(
            f"this kernel shares cores out by session{more}; better: echo 0 > {AUTOGROUP} while "
            "this runs"
        )


def measure(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """All runs: in every round each rate, at each rate each side, in an order that turns."""
    checkpoint = write_checkpoint(scratch / "checkpoint")
    pool_flags = options.pool_flags
    if options.latency_model:
        model = shutil.copyfile(options.latency_model, scratch / "latency-model.json")
        pool_flags = ["--cdsp-latency-model", str(model), *pool_flags]
    chosen = sides(options.policies, pool_flags, scratch, options.stock_chunks)
    decode = ("--max-total-tokens", "80000")
    plan = side_by_side(checkpoint, chosen, decode_flags=decode, router_flags=options.router)
    servers = {c.name: plain(described(c), scratch) for c in plan.commands}
    lines: list[dict[str, Any]] = [{"servers": servers}]
    with running(plan, options.log_directory or scratch / "logs", progress=say) as stack:
        for side in chosen:
            await_answer(stack.urls[side.name])
        comparison = Comparison(stack, checkpoint, scratch, options)
        for side in chosen:  # first use of buffers and links
            comparison.run(side, float("inf"), 10, WARM_UP_SEED)
        runs = len(chosen) * len(options.rates) * options.repeats
        say(f"warm; {runs} runs of {options.seconds:g} s and more")
        for repeat in range(options.repeats):
            for turn, rate in enumerate(options.rates):
                first = (repeat + turn) % len(chosen)
                for side in [*chosen[first:], *chosen[:first]]:
                    count = max(5, round(rate * options.seconds))
                    line = comparison.run(side, rate, count, repeat)
                    lines.append({**line, "repeat": repeat})
                    ttft = statistics.fmean(line["ttft_s"])
                    say(f"repeat {repeat}, {rate:g}/s, {side.name}: mean TTFT {ttft:.2f} s")
                    if options.out:
                        options.out.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return lines


def await_answer(url: str) -> None:
    """Wait until a router answers a request: it asks its servers what they are before it serves.

    Raises:
        RuntimeError: it did not in a minute or so.
    """
    body: dict[str, Any] = {"text": "a", "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
    deadline = time.monotonic() + ROUTER_READY_S
    while (status := requests.post(f"{url}/generate", json=body, timeout=60).status_code) != 200:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the router at {url} still answers {status}; see its log")
        time.sleep(1.0)


def described(command: Command) -> str:
    """A server's command as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return " ".join([*variables, shlex.join(command.arguments)])


def plain(line: str, scratch: Path) -> str:
    """A command that does not name this machine's folders."""
    return line.replace(str(scratch), "DIR").replace(sys.executable, "python")


def say(text: str) -> None:
    """A progress line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def rivals(text: str) -> tuple[str, ...]:
    """Policies by name; none from an empty text."""
    return policies(text) if text else ()


def slo(text: str) -> tuple[float, ...]:
    """``1,4,0.1``: TTFT of short prompts, TTFT of long ones, TPOT, in seconds."""
    found = positive_numbers(text)
    if len(found) != 3:
        raise argparse.ArgumentTypeError(f"{len(found)} numbers; give three like 1,4,0.1")
    return found


def read_runs(path: Path, parser: OneLineParser) -> list[dict[str, Any]]:
    """The lines of an earlier `--out`; one line and status 2 if it is something else."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("a line is no JSON object")
    except OSError as error:
        parser.error(f"--read {path}: {error.strerror or error}; give what --out wrote")
    except (ValueError, RecursionError) as error:
        parser.error(f"--read {path}: {error}; give what --out wrote")
    return lines


def read_or_measure(
    parser: OneLineParser,
    options: argparse.Namespace,
    name: str,
    measure: Callable[[argparse.Namespace, Path], list[dict[str, Any]]],
    files: tuple[str, ...],
    more: str = "",
) -> list[dict[str, Any]]:
    """The runs of an earlier file (`--read`), or measured ones; without the lines that are none.

    Args:
        name: of the folder that the run's files are in.
        files: as in `check`.
        more: as in `warn_of_shared_cores`.
    """
    if options.read:
        lines = read_runs(options.read, parser)
    else:
        check(parser, options, files=files, folders=("log_directory",))
        warn_of_shared_cores(more)
        with kept_on_failure(name) as scratch:
            lines = measure(options, scratch)
    return [line for line in lines if "side" in line]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables; or print them again from a file."""
    parser = OneLineParser(prog="python -m bench.servers.ab", description=__doc__)
    add = parser.add_argument
    add("--policies", type=rivals, default=("cdsp-paper", "cdsp"), help="'' for stock alone")
    add(
        "--stock-chunks",
        type=positive_integers,
        default=(STOCK_CHUNK,),
        help="stock's chunk sizes: tokens",
    )
    add("--latency-model", type=Path, help="of `profile`; else each pool measures itself")
    add("--rates", type=positive_numbers, default=(1.0, 2.0, 3.0), help="requests/s")
    add("--seconds", type=number(1.0, 86_400.0), default=20.0, help="of arrivals in each run")
    add("--repeats", type=integer(1), default=3)
    add("--output-tokens", type=integer(1), default=8)
    add("--router", type=shlex.split, default=ROUTER, help="router flags")
    add("--pool-flags", type=shlex.split, default=[], help="for every server with --cdsp")
    add("--slo", type=slo, default=(1.0, 4.0, 0.1), help="TTFT short, TTFT long, TPOT: seconds")
    add("--out", type=Path, help="every run with its command, JSON lines")
    add("--read", type=Path, help="only print the tables of such a file")
    add("--log-directory", type=Path, help="keep the servers' logs there")
    options = parser.parse_args(arguments)
    more = ", and a pool is one where stock's two servers are two"
    lines = read_or_measure(parser, options, "bench-ab", measure, ("out",), more)
    print(report(lines, Slo(*options.slo)))


if __name__ == "__main__":
    main()
