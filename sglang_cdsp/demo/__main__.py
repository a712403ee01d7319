"""The demonstration: ``python -m sglang_cdsp.demo``.

The same burst of long and short prompts goes to stock SGLang with as many replicas on the same
cores, then to a pool: one server that prefills and decodes.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sglang_cdsp.cli.needs import EXTRAS, SERVER, lacking, leave
from sglang_cdsp.cli.outputs import OutputError, check_folder
from sglang_cdsp.cli.parser import OneLineParser, integer

PROGRAM = "python -m sglang_cdsp.demo"

try:
    from sglang_cdsp.demo import summary
    from sglang_cdsp.demo.burst import BURST
    from sglang_cdsp.demo.chart import show_chart
    from sglang_cdsp.demo.client import (
        Answer,
        chunks_at_once,
        format_table,
        send_burst,
    )
    from sglang_cdsp.demo.deployments import instances, pool, scaled_out, stock
    from sglang_cdsp.simulator.plan_log import read_lines
    from sglang_cdsp.stack.directory_lock import locked
    from sglang_cdsp.stack.processes import ServerFailedError, check_ports
    from sglang_cdsp.testing.checkpoint import write_checkpoint
    from sglang_cdsp.testing.prompts import cut_prompts
    from sglang_cdsp.testing.stack import Deployment, RunningStack, running
except ImportError as error:
    leave(PROGRAM, error)

FORMS = ("one-server", "scale-out", "stock")
PREFIX = "burst-"
WARM_UP_TOKENS = 3000
"""Of the request before the burst: as long as the burst's are on average, since the planner judges
prompts by those that came before."""


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
    say("writing the checkpoint")
    write_checkpoint(checkpoint, options.seed)
    plan_log.unlink(missing_ok=True)
    others: list[Answer] = []
    if options.compare:
        say(f"starting stock SGLang with {options.dp_size} replicas, to compare with")
        rival = stock(checkpoint, options.dp_size)
        with running(rival, options.directory / "logs-stock", progress=say) as stack:
            others = ask_burst(stack, checkpoint, options.output_tokens)
        started = time.monotonic()
    say(f"starting {', '.join(command.name for command in plan.commands)}")
    with running(plan, options.directory / "logs", progress=say) as stack:
        say(f"ready after {time.monotonic() - started:.0f} s")
        answers = ask_burst(stack, checkpoint, options.output_tokens)
    say("all servers ended")
    show(answers, others, plan_log, options.directory)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--form",
        choices=FORMS,
        default=FORMS[0],
        help="scale-out: a prefill pool, a stock decode server and a router; default one-server",
    )
    parser.add_argument(
        "--no-comparison",
        dest="compare",
        action="store_false",
        help="leave stock SGLang's turn out",
    )
    parser.add_argument(
        "--dp-size",
        type=integer(1, 64),
        default=instances(),
        help="instances, and stock's replicas; default one a core, 2 to 8",
    )
    parser.add_argument(
        "--seed", type=integer(0, 1 << 32), default=0, help="seed of the checkpoint's weights"
    )
    parser.add_argument(
        "--output-tokens", type=integer(1), default=32, help="tokens generated a prompt"
    )
    parser.add_argument(
        "--port",
        type=integer(1, 65535),
        help="where clients ask; default a free one",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("build/demo"),
        help="where checkpoint, logs, plan log and charts go",
    )
    parser.add_argument("flags", nargs="*", help="further flags for the pool, after a bare --")
    options = parser.parse_args()
    gone = lacking((*SERVER, *EXTRAS["demo"]))
    if gone:
        parser.error(gone)
    if options.form == "stock" and options.flags:
        parser.error("--form stock has no pool to give further flags to")
    options.compare = options.compare and options.form != "stock"
    try:
        check_folder(options.directory, "--directory")
    except OutputError as error:
        parser.error(str(error))
    return options


def plan_servers(options: argparse.Namespace, checkpoint: Path, plan_log: Path) -> Deployment:
    """Plan the servers that ``options`` ask for."""
    if options.form == "stock":
        return stock(checkpoint, options.dp_size, port=options.port)
    plan = pool if options.form == "one-server" else scaled_out
    return plan(checkpoint, options.dp_size, plan_log, port=options.port, flags=options.flags)


def ask_burst(stack: RunningStack, checkpoint: Path, output_tokens: int) -> list[Answer]:
    """Send one request alone, then the burst; tells of each answer."""
    lengths = [prompt.tokens for prompt in BURST]
    # The last one begins like none of the others, so nothing of the burst is cached.
    *prompts, warm_up = cut_prompts(checkpoint, [*lengths, WARM_UP_TOKENS])
    send_burst(stack.url, [warm_up], output_tokens=4, rid_prefix="first-")
    seconds = max(prompt.at_s for prompt in BURST)
    say(
        f"sending {len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens "
        f"within {seconds:.0f} s"
    )

    def tell(answer: Answer) -> None:
        say(
            f"  {answer.prompt_tokens:5d} tokens: first token after {answer.ttft_s:5.2f} s, "
            f"all after {answer.end_s:5.1f} s"
        )

    return send_burst(
        stack.url,
        prompts,
        output_tokens=output_tokens,
        rid_prefix=PREFIX,
        at_s=[prompt.at_s for prompt in BURST],
        on_answer=tell,
    )


def show(
    answers: Sequence[Answer], others: Sequence[Answer], plan_log: Path, directory: Path
) -> None:
    """Print the table, the chart of what ran where, and the times beside stock's."""
    # Stock servers write no plan log.
    lines = read_lines(plan_log) if plan_log.exists() else []
    entries = {line["rid"]: line for line in lines if line.get("rid", "").startswith(PREFIX)}
    print(f"\n{format_table(answers, entries)}\n")
    if entries:
        print("\n".join(show_chart(plan_log, directory, PREFIX)))
        most = chunks_at_once(list(entries.values()))
        print(f"up to {most} requests had a chunk running at the same moment")
    tokens = sum(answer.prompt_tokens for answer in answers)
    seconds = max(answer.end_s for answer in answers)
    beside = f" (stock {max(other.end_s for other in others):.1f} s)" if others else ""
    print(
        f"\n{len(answers)} requests with {tokens} prompt tokens answered in {seconds:.1f} s{beside}"
    )
    print("\n".join(summary.lines(answers, others)), flush=True)


def say(line: str) -> None:
    """Print a progress line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
