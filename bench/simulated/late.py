"""Waiting unbound against binding at arrival: `python -m bench.simulated.late [--trace FILE]`.

Simulates `cdsp-paper`, `cdsp` and `cdsp-late` on the paper's set-up (16 prefill instances in nodes
of 8, 2 decode instances, KV limits and transfers, the Table I fit) near the knee of each drawn
workload, or of a recorded trace replayed at several speeds. Each policy gets the improvement rate
that gives it the least mean TTFT at that load, as the regulation's table would; `cdsp-late` is also
shown at the server's default rate at every load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.simulated.beside_paper import add_flags, drawn, heading, show
from sglang_cdsp.cli.parser import OneLineParser, positive_numbers
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.traces import TraceError, read_trace
from sglang_cdsp.simulator.workload import at_speed

RATES = {
    "short": (3.5, 4.5, 5.0),
    "medium": (2.0, 3.0, 3.25),
    "long": (1.0, 1.5, 1.75),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every load and policy."""
    parser = OneLineParser(
        prog="python -m bench.simulated.late", description=__doc__.splitlines()[0]
    )
    add_flags(parser, policies="cdsp-paper,cdsp,cdsp-late", seeds=5)
    parser.add_argument("--trace", type=Path, help="a recorded trace in place of the workloads")
    parser.add_argument(
        "--speeds", type=positive_numbers, default=(3.0, 3.5), help="how many times as fast"
    )
    args = parser.parse_args(arguments)
    try:
        recorded = read_trace(args.trace) if args.trace else ()
    except TraceError as error:
        parser.error(str(error))
    heading()
    if args.trace:
        for speed in args.speeds:
            show(Setup(), args, f"trace x{speed:g}", [at_speed(recorded, speed)])
        return
    for name, loads in drawn(args, RATES):
        show(Setup(), args, name, loads)


if __name__ == "__main__":
    main()
