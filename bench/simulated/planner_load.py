"""Chunk planners under load: `python -m bench.simulated.planner_load`.

What a plan costs those behind it and nothing else: 16 instances, Poisson arrivals, prompt lengths
of the paper's ranges and means, every chunk as long as the Table I fit says, no memory limit, no
decode, no transfer. For each arrival rate each policy gets the improvement rate that gives it the
least mean TTFT, as the regulation's table would, and is compared with the paper's policy seed by
seed.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.simulated.beside_paper import add_flags, drawn, heading, show
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.planner.problem import NO_LIMIT
from sglang_cdsp.simulator.setup import Setup

RATES = {"short": (2.0, 3.5, 5.0), "medium": (1.5, 2.5, 3.5), "long": (0.5, 1.0, 1.5, 2.0)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every load and policy."""
    parser = OneLineParser(
        prog="python -m bench.simulated.planner_load", description=__doc__.splitlines()[0]
    )
    add_flags(parser, policies="cdsp-paper,cdsp,single-chunk", seeds=8)
    parser.add_argument("--instances-per-node", type=integer(1), default=8)
    args = parser.parse_args(arguments)
    setup = Setup(
        instances_per_node=args.instances_per_node, kv_tokens=NO_LIMIT, decode_instances=0
    )
    heading()
    for name, loads in drawn(args, RATES):
        show(setup, args, name, loads)


if __name__ == "__main__":
    main()
