"""The paper's figures in minutes: `python -m bench.paper.page --traces DIR`.

TTFT over load for each workload and trace, its distribution at the critical rate of static groups,
and the critical rate of each policy, one colour a policy. Fewer policies, requests and seeds than
`bench.paper.run`, so the figures are rougher than those of its reports; writes `figures.md` and its
pictures. They go to build/figures; what is committed is updated with `--out bench/results`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.paper.cases import Load
from bench.paper.curves import Study, critical_rate, p50, p99
from bench.paper.figures import draw_bars, draw_cdfs, draw_curves
from bench.paper.run import BACKGROUND, TRACE, explore
from sglang_cdsp.cli.needs import lacking
from sglang_cdsp.cli.outputs import OutputError, check_folder
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.simulator.traces import TraceError, read_trace

STATIC = "fixed-sp:8"
"""The paper's best baseline."""

POLICIES = (STATIC, "loongserve", "single-chunk", "cdsp-paper", "cdsp", "cdsp-late")
RATES = {
    "short": (2.0, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0),
    "medium": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    "long": (0.5, 1.0, 1.25, 1.5, 1.75, 2.0),
}
SPEEDS = (1.0, 1.5, 2.0, 2.5)
IMPROVEMENT_RATES = (0.1, 0.3, 0.5)
REQUESTS, SEEDS, TUNING = 400, (0, 1), 99
PARTS, TUNING_PART = (0,), 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the simulations, draws, and writes the page."""
    parser = OneLineParser(prog="python -m bench.paper.page", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/figures"), metavar="DIR", help="build/figures")
    add("--requests", type=integer(1, 1_000_000), default=REQUESTS, help="per drawn run")
    add("--processes", type=integer(1, 1024), default=1)
    add("--traces", type=Path, metavar="DIR", help=f"where {TRACE} and {BACKGROUND} are")
    add("--cache", type=Path, metavar="FILE", help="keep runs there and take known ones from it")
    args = parser.parse_args(arguments)
    try:
        _check(args)
    except (OutputError, TraceError) as error:
        parser.error(str(error))
    drawn = [Load(name, rates, args.requests) for name, rates in RATES.items()]
    sweeps = [(load, load.rates) for load in drawn]
    studies = explore(sweeps, POLICIES, IMPROVEMENT_RATES, SEEDS, TUNING, args)
    pictures = _draw_drawn([_at_a_swept_rate(study) for study in studies], args.out)
    traced = [] if args.traces is None else _traced(args)
    if traced:
        path = args.out / "figures-traces.png"
        draw_curves(traced, path, "speed (times as recorded)")
        pictures.append((path.name, "P50 and P99 TTFT against the speed of the trace"))
    page = args.out / "figures.md"
    page.write_text(_page(studies, traced, pictures, args.requests), encoding="utf-8")
    for path in (*(args.out / name for name, _ in pictures), page):
        print(f"wrote {path}", flush=True)
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before any run.

    Raises:
        OutputError, TraceError: names the flag and the remedy.
    """
    gone = lacking(("matplotlib",))
    if gone:
        raise OutputError(gone)
    for name in (TRACE, BACKGROUND) if args.traces is not None else ():
        read_trace(args.traces / name)
    check_folder(args.out, "--out")


def _traced(args: argparse.Namespace) -> list[Study]:
    """Mooncake alone and with ServeGen: one part of ten minutes, another to tune on."""
    trace, background = args.traces / TRACE, args.traces / BACKGROUND
    loads = [
        Load("Mooncake", SPEEDS, trace=trace),
        Load("Mooncake and ServeGen", SPEEDS, trace=trace, background=background),
    ]
    sweeps = [(load, load.rates) for load in loads]
    return explore(sweeps, POLICIES, IMPROVEMENT_RATES, PARTS, TUNING_PART, args)


def _at_a_swept_rate(study: Study) -> Study:
    """With the swept rate that is nearest to the critical rate of static groups as that rate."""
    found = critical_rate(study, STATIC)
    nearest = min(study.load.rates, key=lambda rate: abs(rate - found))
    return replace(study, critical={STATIC: nearest})


def _draw_drawn(studies: Sequence[Study], out: Path) -> list[tuple[str, str]]:
    """Draws what the paper draws of its workloads; file names and captions."""
    captions = {
        "figures-rates.png": "P50 and P99 TTFT against the arrival rate",
        "figures-cdf.png": f"the distribution of TTFT near the critical rate of `{STATIC}`",
        "figures-loads.png": "the critical rate of each policy: the highest at which P50 TTFT is "
        "at most five times that at light load; one at the end of the sweep may be higher",
    }
    rates, cdfs, loads = (out / name for name in captions)
    draw_curves(studies, rates, "requests/s")
    draw_cdfs(studies, STATIC, cdfs)
    critical = {s.load.name: {name: critical_rate(s, name) for name in s.policies} for s in studies}
    draw_bars(critical, loads, "critical rate (requests/s)")
    return list(captions.items())


def _page(
    studies: Sequence[Study],
    traced: Sequence[Study],
    pictures: Sequence[tuple[str, str]],
    requests: int,
) -> str:
    flag = "" if requests == REQUESTS else f" --requests {requests}"
    traces = " --traces DIR" if traced else ""
    parts = (
        f" Traces: part {PARTS[0]} of ten minutes, part {TUNING_PART} to tune on." if traced else ""
    )
    blocks = [
        "# The paper's figures, in minutes",
        f"`python -m bench.paper.page{traces}{flag} --out bench/results`",
        "The set-up of [paper-8b.md](paper-8b.md), simulated: 16 prefill instances in nodes of 8, "
        f"the Table I fit, Poisson arrivals, {requests} requests a run, the first tenth left out. "
        f"Seeds {' and '.join(map(str, SEEDS))}; each policy at the improvement rate of "
        f"{', '.join(map(str, IMPROVEMENT_RATES))} that gave it the least mean TTFT at that load "
        f"on seed {TUNING}.{parts} A policy has one colour in all of them. The reports of "
        "`bench.paper.run` have more seeds, more requests and what it means.",
    ]
    for name, caption in pictures:
        blocks.append(f"![{caption}]({name})\n\n{caption[0].upper()}{caption[1:]}.")
    for study in (*studies, *traced):
        blocks.append(_table(study))
    return "\n\n".join(blocks) + "\n"


def _table(study: Study) -> str:
    unit = "speed" if study.load.trace else "requests/s"
    rows = [
        [f"{rate:g}"]
        + [
            f"{point.mean(p50):.3g} / {point.mean(p99):.3g}"
            for point in (study.best(name, rate) for name in study.policies)
        ]
        for rate in study.load.rates
    ]
    heads = [unit, *(f"`{name}`" for name in study.policies)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    title = study.load.name[0].upper() + study.load.name[1:]
    return f"## {title}, P50 / P99 TTFT in seconds\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
