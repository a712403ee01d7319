"""The demonstration: ``python -m sglang_cdsp.demo``; with ``--serve`` the servers stay."""

import argparse
import sys
import time
from pathlib import Path

from sglang_cdsp.cli.needs import EXTRAS, SERVER, lacking, leave
from sglang_cdsp.cli.outputs import OutputError, check_folder
from sglang_cdsp.cli.parser import OneLineParser, integer

PROGRAM = "python -m sglang_cdsp.demo"

try:
    from sglang_cdsp.demo.client import (
        Answer,
        chunks_at_once,
        format_table,
        send_burst,
    )
    from sglang_cdsp.simulator.plan_log import read_lines
    from sglang_cdsp.stack.directory_lock import locked
    from sglang_cdsp.stack.processes import ServerFailedError, check_ports
    from sglang_cdsp.testing.checkpoint import write_checkpoint
    from sglang_cdsp.testing.prompts import cut_prompts
    from sglang_cdsp.testing.stack import Deployment, RunningStack, disaggregated, running
except ImportError as error:
    leave(PROGRAM, error)

BURST = (8000, 150, 6500, 400, 7200, 100, 1000, 2500, 250, 5000, 700, 3600)
"""Prompt lengths in tokens, sent at once: long ones and short ones mixed."""

SERVE_PORT = 30_000


def main() -> int:
    """Run the demonstration and return the exit status."""
    options = parse_options()
    try:
        # Before anything in it is written or deleted: another demonstration may be using it.
        with locked(options.directory):
            return demonstrate(options)
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except ServerFailedError as error:
        print(error, file=sys.stderr)
        return 1


def demonstrate(options: argparse.Namespace) -> int:
    """Start the servers and use them; returns the exit status.

    Raises:
        ServerFailedError: a port or the directory of logs is in use, or a server failed.
    """
    started = time.monotonic()
    checkpoint = options.directory / "checkpoint"
    plan_log = options.directory / "plans.jsonl"
    plan = plan_servers(options, checkpoint, plan_log)
    check_ports(plan.commands)
    print("writing the checkpoint", flush=True)
    write_checkpoint(checkpoint, options.seed)
    plan_log.unlink(missing_ok=True)
    print("starting prefill, decode and router", flush=True)
    with running(plan, options.directory / "logs", progress=say) as stack:
        if options.serve:
            serve(stack)
        else:
            show_burst(stack, checkpoint, plan_log, options.output_tokens, started)
    print("all servers ended")
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep the servers until Ctrl-C")
    parser.add_argument(
        "--stock", action="store_true", help="stock SGLang with one instance, for comparison"
    )
    parser.add_argument("--dp-size", type=integer(1, 64), default=4, help="instances of the pool")
    parser.add_argument(
        "--seed", type=integer(0, 1 << 32), default=0, help="seed of the checkpoint's weights"
    )
    parser.add_argument(
        "--output-tokens", type=integer(1), default=32, help="tokens generated a prompt"
    )
    parser.add_argument(
        "--port",
        type=integer(1, 65535),
        help=f"the router's port; default {SERVE_PORT} with --serve, else free",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("build/demo"),
        help="where checkpoint, logs and plan log go",
    )
    parser.add_argument(
        "flags", nargs="*", help="further flags for the prefill server, after a bare --"
    )
    options = parser.parse_args()
    gone = lacking((*SERVER, *EXTRAS["demo"]))
    if gone:
        parser.error(gone)
    try:
        check_folder(options.directory, "--directory")
    except OutputError as error:
        parser.error(str(error))
    return options


def plan_servers(options: argparse.Namespace, checkpoint: Path, plan_log: Path) -> Deployment:
    """Plan the servers that ``options`` ask for."""
    pool = (
        *("--cdsp", "--dp-size", str(options.dp_size)),
        *("--cdsp-plan-log", str(plan_log.resolve())),
        "--cdsp-allow-request-plans",
    )
    # Here, since it needs torch: what is lacking is told before.
    from sglang_cdsp.launch.defaults import open_settings

    # Stock decode does not know what a pool chooses on GPUs, and wants the same.
    chosen = open_settings(argparse.Namespace(page_size=None)).get("page_size")
    pages = () if chosen is None else ("--page-size", str(chosen))
    return disaggregated(
        checkpoint,
        prefill_flags=(
            *pages,
            *("--max-total-tokens", "20000"),
            *(() if options.stock else pool),
            *options.flags,
        ),
        decode_flags=("--max-total-tokens", "80000", *pages),
        router_port=options.port or (SERVE_PORT if options.serve else None),
    )


def show_burst(
    stack: RunningStack, checkpoint: Path, plan_log: Path, output_tokens: int, started: float
) -> None:
    """Send one small request, then the burst, and print the table."""
    warm_up = cut_prompts(checkpoint, [100])
    send_burst(stack.url, warm_up, output_tokens=4, rid_prefix="first-")
    say(f"first answer {time.monotonic() - started:.0f} s after the start")
    prompts = cut_prompts(checkpoint, BURST)
    say(f"sending {len(prompts)} prompts of {min(BURST)} to {max(BURST)} tokens at once")

    def tell(answer: Answer) -> None:
        say(f"  {answer.prompt_tokens:5d} tokens answered after {answer.end_s:5.1f} s")

    answers = send_burst(
        stack.url, prompts, output_tokens=output_tokens, rid_prefix="burst-", on_answer=tell
    )
    # Stock servers write no plan log.
    lines = read_lines(plan_log) if plan_log.exists() else []
    entries = {line["rid"]: line for line in lines}
    print(f"\n{format_table(answers, entries)}\n")
    tokens = sum(answer.prompt_tokens for answer in answers)
    seconds = max(answer.end_s for answer in answers)
    print(f"{len(answers)} requests with {tokens} prompt tokens answered in {seconds:.1f} s")
    mine = [entry for rid, entry in entries.items() if rid.startswith("burst-")]
    if mine:
        print(f"up to {chunks_at_once(mine)} requests had a chunk running at the same moment")


def serve(stack: RunningStack) -> None:
    """Say how to send a request, then wait until interrupted or until a server ends."""
    print(
        f"\nready; logs: {next(iter(stack.servers.values())).log.parent}\ntry:\n\n"
        f"curl {stack.url}/v1/completions -H 'Content-Type: application/json' -d "
        """'{"model": "default", "prompt": "The import statement", "max_tokens": 16}'"""
        "\n\nCtrl-C ends everything",
        flush=True,
    )
    while True:
        time.sleep(1)
        for server in stack.servers.values():
            server.check_alive()


def say(line: str) -> None:
    """Print a progress line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
