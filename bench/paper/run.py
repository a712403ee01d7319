"""The paper's evaluation, simulated: `python -m bench.paper.run`.

LLaMA3-8B on 32 A100: 16 prefill instances in nodes of 8 and 2 decode instances, every policy over a
sweep of rates, each with the improvement rate that suits it best at that rate. Writes
`paper-8b.md` and its figures, and with `--traces DIR` `paper-traces.md` as well: Mooncake's
conversation trace, alone and with ServeGen's short requests as background, at several speeds.

They go to build/paper. What is committed is updated with `--out bench/results`, and only with the
default `--requests`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from bench.paper.cases import CacheError, Case, Load, Outcome, forget, light, read_cache, run_cases
from bench.paper.curves import Study, critical_rate
from bench.paper.figures import draw_cdfs, draw_curves
from bench.paper.report import paper_report, trace_report
from sglang_cdsp.cli.needs import lacking
from sglang_cdsp.cli.outputs import OutputError, check_file, check_folder
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.simulator.sweep import UNIFIED, is_regulated
from sglang_cdsp.simulator.traces import TraceError, read_trace

BASELINES = ("fixed-sp:16", "fixed-sp:8", "loongserve", UNIFIED)
OURS = ("single-chunk", "cdsp-paper", "cdsp", "cdsp-late")
POLICIES = BASELINES + OURS
CRITICAL = ("fixed-sp:8", "loongserve", "cdsp-paper")
"""At whose critical rates to look closer: the paper's best baseline, ours, the paper's policy."""

IMPROVEMENT_RATES = (0.1, 0.2, 0.3, 0.5, 0.7)
RATES = {
    "short": (2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0),
    "medium": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0),
    "long": (0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5),
}
SPEEDS = (1.0, 2.0, 2.5)
TUNING, SEEDS, MORE_SEEDS = 99, range(3), range(5)
TUNING_PART, PARTS = 3, range(3)
TRACE = "mooncake_conversation_trace.jsonl"
BACKGROUND = "servegen_m-large_4rps_1200s.csv"
RESULTS = Path(__file__).resolve().parents[1] / "results"
"""Where the committed reports are."""

REQUESTS = 800
"""A run of a drawn workload; of much fewer no queue grows, and the critical rates are unknown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the flags ask for and write the reports and figures."""
    parser = OneLineParser(prog="python -m bench.paper.run", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("build/paper"),
        metavar="DIR",
        help="default: build/paper; bench/results replaces what is committed",
    )
    add("--requests", type=integer(1, 1_000_000), default=REQUESTS, help="per drawn run")
    add("--processes", type=integer(1, 1024), default=2)
    add("--traces", type=Path, metavar="DIR", help=f"where {TRACE} and {BACKGROUND} are")
    add("--only", choices=("drawn", "traces"), help="one of the two reports")
    add("--cache", type=Path, metavar="FILE", help="keep runs there and take known ones from it")
    add("--forget", metavar="POLICY", help="drop a policy's runs from the cache: it has changed")
    args = parser.parse_args(arguments)
    try:
        _check(args)
    except (CacheError, OutputError, TraceError) as error:
        parser.error(str(error))
    if args.forget:
        forget(args.cache, args.forget)
    if args.only != "traces":
        drawn(args)
    if args.traces and args.only != "drawn":
        traces(args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before hours of runs.

    Raises:
        CacheError, OutputError, TraceError: names the flag and the remedy.
    """
    gone = lacking(("matplotlib",))
    if gone:
        raise OutputError(gone)
    if args.only == "traces" and args.traces is None:
        raise OutputError(f"--only traces needs --traces DIR, with {TRACE} and {BACKGROUND} in it")
    if args.forget and args.cache is None:
        raise OutputError("--forget drops runs from --cache FILE; give both")
    if args.forget and args.forget not in POLICIES:
        raise OutputError(f"--forget {args.forget}: not one of {', '.join(POLICIES)}")
    if args.traces is not None and args.only != "drawn":
        for name in (TRACE, BACKGROUND):
            read_trace(args.traces / name)
    check_folder(args.out, "--out")
    if args.out.resolve() == RESULTS and args.requests != REQUESTS:
        raise OutputError(
            f"--out {args.out} holds what is committed, of {REQUESTS} requests a run; give another "
            "folder, or leave --requests out"
        )
    check_file(args.cache, "--cache")
    read_cache(args.cache)


def _wrote(path: Path) -> None:
    print(f"wrote {path}", flush=True)


def drawn(args: argparse.Namespace) -> None:
    """Short, Medium and Long; at the critical rates more seeds, and the regulator as well."""
    loads = [Load(name, rates, args.requests) for name, rates in RATES.items()]
    sweeps = [(load, load.rates) for load in loads]
    studies = explore(sweeps, POLICIES, IMPROVEMENT_RATES, SEEDS, TUNING, args)
    critical = {s.load: {name: critical_rate(s, name) for name in CRITICAL} for s in studies}
    closer = [(load, sorted(set(critical[load].values()))) for load in loads]
    known = {case: outcome for s in studies for case, outcome in s.outcomes.items()}
    tables = {(s.load, name): s.table(name) for s in studies for name in POLICIES}
    studies = explore(closer, POLICIES, IMPROVEMENT_RATES, MORE_SEEDS, TUNING, args, known)
    regulated = [
        Case(load, rate, name, 0.0, seed, tables[load, name])
        for load, rates in closer
        for rate, name, seed in itertools.product(rates, POLICIES, MORE_SEEDS)
        if is_regulated(name)
    ]
    ran = run_cases(regulated, args.processes, args.cache, "with the regulator")
    studies = [
        replace(s, outcomes={**s.outcomes, **ran}, critical=critical[s.load]) for s in studies
    ]
    report, rates, cdfs = (
        args.out / name for name in ("paper-8b.md", "paper-8b-rates.png", "paper-8b-cdf.png")
    )
    report.write_text(paper_report(studies, args.requests), encoding="utf-8")
    _wrote(report)
    draw_curves(studies, rates, "requests/s")
    _wrote(rates)
    draw_cdfs(studies, "fixed-sp:8", cdfs)
    _wrote(cdfs)


def traces(args: argparse.Namespace) -> None:
    """Mooncake alone and with ServeGen; parts of ten minutes stand for seeds."""
    trace, background = args.traces / TRACE, args.traces / BACKGROUND
    loads = [
        Load("Mooncake", SPEEDS, trace=trace),
        Load("Mooncake and ServeGen", SPEEDS, trace=trace, background=background),
    ]
    names = [name for name in POLICIES if name not in ("fixed-sp:16", UNIFIED)]
    sweeps = [(load, load.rates) for load in loads]
    studies = explore(sweeps, names, (0.1, 0.3, 0.5), PARTS, TUNING_PART, args)
    report, speeds = args.out / "paper-traces.md", args.out / "paper-traces-speeds.png"
    report.write_text(trace_report(studies), encoding="utf-8")
    _wrote(report)
    draw_curves(studies, speeds, "speed (times as recorded)")
    _wrote(speeds)


def explore(
    sweeps: Sequence[tuple[Load, Sequence[float]]],
    policies: Sequence[str],
    improvement_rates: Sequence[float],
    seeds: Sequence[int],
    tuning: int,
    args: argparse.Namespace,
    known: Mapping[Case, Outcome] = MappingProxyType({}),
) -> list[Study]:
    """Tunes every policy at every load's rates on one seed, then runs the others.

    `known` outcomes are kept in the studies.
    """
    where = [(load, rate, name) for load, rates in sweeps for rate in rates for name in policies]
    trial = [
        Case(*place, r, tuning)
        for place in where
        for r in improvement_rates
        if is_regulated(place[2])
    ]
    outcomes = {**known, **run_cases(trial, args.processes, args.cache, "tuning")}
    tuned = {
        load: Study(
            load,
            tuple(policies),
            {case: outcome for case, outcome in outcomes.items() if case.load == load},
            tuple(seeds),
            tuning,
            tuple(light(load, seed) for seed in seeds),
        )
        for load, _ in sweeps
    }
    cases = [
        Case(load, rate, name, tuned[load].improvement_rate(name, rate), seed)
        for load, rate, name in where
        for seed in seeds
    ]
    outcomes |= run_cases(cases, args.processes, args.cache)
    return [
        replace(s, outcomes={c: o for c, o in outcomes.items() if c.load == s.load})
        for s in tuned.values()
    ]


if __name__ == "__main__":
    sys.exit(main())
