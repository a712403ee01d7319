"""Passing running prompts, simulated: `python -m bench.simulated.preempt [--traces DIR]`.

`cdsp-late` with its budget for passing, beside the same without (0) and `cdsp-paper`, on the
paper's set-up at `cdsp-paper`'s critical rates (bench.paper finds them), and with `--traces` on
Mooncake's trace mixed with ServeGen's short requests. Each gets the improvement rate with the least
mean TTFT on one further seed. Writes a Markdown page with all figures, losses too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.paper.cases import Case, Load, Outcome, run_cases
from bench.paper.curves import Point, Read, mean_ttft, p50, p99, ratio
from bench.paper.report import table
from bench.paper.run import (
    BACKGROUND,
    IMPROVEMENT_RATES,
    MORE_SEEDS,
    PARTS,
    REQUESTS,
    SPEEDS,
    TRACE,
    TUNING,
    TUNING_PART,
)
from sglang_cdsp.cli.outputs import OutputError, check_file
from sglang_cdsp.cli.parser import OneLineParser, integer, number
from sglang_cdsp.planner.policies.options import DEFAULT_PREEMPT_BUDGET
from sglang_cdsp.simulator.metrics import Summary
from sglang_cdsp.simulator.traces import TraceError, read_trace

CRITICAL = {"short": 5.1, "medium": 3.1, "long": 1.55}
"""`cdsp-paper`'s critical rates in requests/s, from bench/results/paper-8b.md."""

LONGEST = 0.1
"""The share of the prompts that counts as long."""

PAGE = Path("build/preempt.md")


@dataclass(frozen=True)
class Side:
    """One policy of the comparison."""

    label: str
    policy: str
    preempt_budget: float


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one side at one load. long: mean TTFT in seconds of the longest prompts, a run
    each; shape (runs,)."""

    side: Side
    point: Point
    long: np.ndarray


def sides(budget: float) -> tuple[Side, ...]:
    """The paper's policy, ours without passing, ours with."""
    return (
        Side("`cdsp-paper`", "cdsp-paper", 0.0),
        Side("`cdsp-late`, budget 0", "cdsp-late", 0.0),
        Side(f"`cdsp-late`, budget {budget:g}", "cdsp-late", budget),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and write the page."""
    parser = OneLineParser(
        prog="python -m bench.simulated.preempt", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--traces", type=Path, metavar="DIR", help=f"with {TRACE} and {BACKGROUND}")
    add("--preempt-budget", type=number(0.0, 100.0), default=DEFAULT_PREEMPT_BUDGET)
    add("--requests", type=integer(1, 100_000), default=REQUESTS, help="of a drawn workload")
    add("--seeds", type=integer(1, 100), default=len(MORE_SEEDS))
    add("--processes", type=integer(1, 1000), default=2)
    add("--cache", type=Path, metavar="FILE", help="keeps the runs for the next call")
    add("--out", type=Path, default=PAGE, metavar="FILE", help=f"default: {PAGE}")
    args = parser.parse_args(arguments)
    try:
        for name in (TRACE, BACKGROUND) if args.traces else ():
            read_trace(args.traces / name)
        check_file(args.out, "--out")
        check_file(args.cache, "--cache")
    except (OutputError, TraceError) as error:
        parser.error(str(error))
    places = [
        (Load(name, (rate,), args.requests), rate, range(args.seeds), TUNING)
        for name, rate in CRITICAL.items()
    ]
    if args.traces:
        mixed = Load(
            "mooncake and servegen",
            SPEEDS,
            trace=args.traces / TRACE,
            background=args.traces / BACKGROUND,
        )
        places += [(mixed, speed, PARTS, TUNING_PART) for speed in SPEEDS]
    compared = sides(args.preempt_budget)
    found = [
        (load, rate, compare(load, rate, compared, tuple(seeds), tuning, args))
        for load, rate, seeds, tuning in places
    ]
    args.out.write_text(page(found, args.requests), encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


def compare(
    load: Load,
    rate: float,
    compared: Sequence[Side],
    seeds: tuple[int, ...],
    tuning: int,
    args: argparse.Namespace,
) -> list[Cell]:
    """Every side at one load: its improvement rate from the tuning seed, then the other seeds."""

    def case(side: Side, r: float, seed: int) -> Case:
        return Case(load, rate, side.policy, r, seed, preempt_budget=side.preempt_budget)

    def ran(cases: Sequence[Case], what: str) -> dict[Case, Outcome]:
        return run_cases(cases, args.processes, args.cache, f"{load.name} {rate:g}: {what}")

    trial = ran([case(side, r, tuning) for side in compared for r in IMPROVEMENT_RATES], "tuning")

    def best(side: Side) -> float:
        return min(IMPROVEMENT_RATES, key=lambda r: mean_ttft(trial[case(side, r, tuning)].summary))

    rates = {side: best(side) for side in compared}
    outcomes = ran([case(side, rates[side], seed) for side in compared for seed in seeds], "runs")
    cells = []
    for side in compared:
        mine = tuple(outcomes[case(side, rates[side], seed)] for seed in seeds)
        long = [_longest(load, rate, seed, o) for seed, o in zip(seeds, mine, strict=True)]
        cells.append(Cell(side, Point(rates[side], mine), np.array(long)))
    return cells


def _longest(load: Load, rate: float, seed: int, outcome: Outcome) -> float:
    """Mean TTFT of the longest prompts of a run, in seconds."""
    tokens = np.array([request.prompt_tokens for request in load.at(rate, seed)])
    kept = tokens[len(tokens) - len(outcome.ttfts) :]
    long = kept >= np.quantile(kept, 1 - LONGEST)
    return float(outcome.ttfts[long].mean())


def page(found: Sequence[tuple[Load, float, Sequence[Cell]]], requests: int) -> str:
    """The results as Markdown."""
    blocks = [HEAD.format(requests=requests, longest=LONGEST)]
    for load, rate, cells in found:
        unit = "times as recorded" if load.trace else "requests/s"
        blocks += [f"## {load.name.capitalize()}, {rate:g} {unit}", _table(cells)]
    return "\n\n".join(blocks) + "\n"


HEAD = """# Passing running prompts, simulated

`python -m bench.simulated.preempt --traces DIR --out bench/results/preempt.md`

The set-up of [paper-8b.md](paper-8b.md): 16 prefill instances in nodes of 8, 2 decode instances,
KV limits and transfers, chunks that give way before each of 32 layers; {requests} requests a run,
or ten minutes of the trace, the first tenth left out. Mean over the runs, in brackets the least and
the greatest; ratios are geometric means of one run's figures, so above 1 the last line's policy is
better. *Long*: mean TTFT of the longest {longest:.0%} of the prompts. *Wait*: the longest from
arrival to the start of the first chunk."""

READS: tuple[tuple[str, Read], ...] = (("P50", p50), ("P99", p99), ("mean", mean_ttft))


def _table(cells: Sequence[Cell]) -> str:
    ours = cells[-1]
    rows = []
    for cell in cells:
        waits = cell.point.figures(_wait)
        figures = [_spread(cell.point.figures(read)) for _, read in READS]
        row = [cell.side.label, f"{cell.point.improvement_rate:g}", *figures]
        row += [_spread(cell.long), f"{waits.max():.1f}"]
        for _, read in READS:
            beside = ratio(cell.point, ours.point, read)
            row.append("{:.2f} ({:.2f} to {:.2f})".format(*beside) if cell is not ours else "1")
        logs = np.log(cell.long / ours.long)
        row.append(f"{np.exp(logs.mean()):.2f}" if cell is not ours else "1")
        rows.append(row)
    names = [name for name, _ in READS]
    heads = ["policy", "r", *(f"{name} s" for name in names), "long s", "wait s"]
    return table([*heads, *(f"{name} over ours" for name in names), "long over ours"], rows)


def _wait(summary: Summary) -> float:
    return summary.longest_wait_s


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"


if __name__ == "__main__":
    sys.exit(main())
