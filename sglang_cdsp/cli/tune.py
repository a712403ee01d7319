"""``python -m sglang_cdsp tune``: the improvement rate with the least TTFT for each arrival rate.

The table is what a server reads with --cdsp-improvement-rates and takes at POST /cdsp/update. Each
entry is the rate with the least mean TTFT over the seeds, found with the simulator.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from sglang_cdsp.cli.outputs import OutputError, check_file, unwritable
from sglang_cdsp.cli.parser import integer, numbers
from sglang_cdsp.cli.pool_flags import add_pool_flags, range_warning, read_setup, read_source
from sglang_cdsp.cli.progress import over
from sglang_cdsp.planner.errors import OptionError, PlannerError
from sglang_cdsp.planner.policies import DEFAULT_POLICY, REGULATED_NAMES, make_policy
from sglang_cdsp.simulator.errors import InvariantError, SimulationError
from sglang_cdsp.simulator.sweep import is_regulated, variant
from sglang_cdsp.simulator.traces import TraceError
from sglang_cdsp.simulator.tune import IMPROVEMENT_RATES, Tuned, table, tune

MOST_RATES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_pool_flags(parser)
    add = parser.add_argument
    add(
        "--policy",
        default=DEFAULT_POLICY,
        metavar="NAME",
        help=f"{', '.join(REGULATED_NAMES)} (default: the server's, {DEFAULT_POLICY})",
    )
    add("--from", dest="first", type=float, default=0.5, metavar="R", help="least arrival rate")
    add("--to", type=float, default=4.0, metavar="R", help="greatest arrival rate, requests/s")
    add("--step", type=float, default=0.5, metavar="R", help="between two (default: 0.5)")
    add("--improvement-rates", type=numbers, default=IMPROVEMENT_RATES, metavar="R,R,...")
    add(
        "--seeds",
        type=integer(),
        default=3,
        metavar="N",
        help="seeds of drawn requests (default: 3)",
    )
    add("--out", type=Path, metavar="FILE", help="write the table there, print all means instead")


def run(options: argparse.Namespace) -> int:
    """Tunes every arrival rate; exit status 2 if a flag or a trace is wrong."""
    try:
        arrival_rates = _arrival_rates(options)
        setup, source = variant(read_setup(options), options.policy), read_source(options)
        make_policy(setup.policy, setup.make_options())
        check_file(options.out, "--out")
        # A trace is the same for every seed.
        seeds = range(options.seed, options.seed + (1 if options.trace else options.seeds))
        warning = range_warning(setup, source.at(1.0, options.seed))
        if warning:
            print(f"python -m sglang_cdsp tune: {warning}", file=sys.stderr)
        tuned = []
        for rate in over(arrival_rates, "tuning"):
            runs = [source.at(source.speed(rate), seed) for seed in seeds]
            tuned.append(tune(setup, rate, runs, options.improvement_rates))
    except InvariantError:
        raise
    except (PlannerError, SimulationError, TraceError, OutputError) as error:
        print(f"python -m sglang_cdsp tune: {error}", file=sys.stderr)
        return 2
    text = json.dumps(table(tuned))
    if options.out is None:
        print(text)
        return 0
    print(_means(tuned))
    try:
        options.out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        print(text)
        line = unwritable(options.out, "--out", error)
        print(f"python -m sglang_cdsp tune: {line}; the table stands above", file=sys.stderr)
        return 1
    print(f"wrote {options.out}: improvement rates by arrival rate, for --cdsp-improvement-rates")
    return 0


def _arrival_rates(options: argparse.Namespace) -> list[float]:
    first, last, step = options.first, options.to, options.step
    if not (0 < first <= last < math.inf and step > 0):
        raise OptionError(f"--from {first:g} --to {last:g} --step {step:g}: give 0 < from <= to")
    if not is_regulated(options.policy):
        raise OptionError(f"policy {options.policy} has no improvement rate; tune cdsp, say")
    for rate in options.improvement_rates:
        if not 0 <= rate < 1:
            raise OptionError(f"--improvement-rates: {rate:g} is not in [0, 1)")
    if options.seeds < 1:
        raise OptionError(f"--seeds is {options.seeds}; give at least 1")
    count = (last - first) / step + 1
    if count > MOST_RATES:
        raise OptionError(f"--step {step:g} makes more than {MOST_RATES} rates; give a larger one")
    return [round(first + i * step, 6) for i in range(int(count + 1e-9))]


def _means(tuned: list[Tuned]) -> str:
    """Mean TTFT in seconds by arrival rate (lines) and improvement rate; * marks the least."""
    lines = ["   req/s" + "".join(f"{rate:9.2f} " for rate, _ in tuned[0].mean_ttft_s)]
    for entry in tuned:
        cells = (
            f"{mean:9.3f}" + "* "[rate != entry.improvement_rate]
            for rate, mean in entry.mean_ttft_s
        )
        lines.append(f"{entry.arrival_rate:8.2f}" + "".join(cells))
    return "\n".join(lines)
