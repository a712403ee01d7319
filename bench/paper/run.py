"""The paper's evaluation, simulated: `PYTHONPATH=. python -m bench.paper.run`.

LLaMA3-8B on 32 A100: 16 prefill instances in nodes of 8 and 2 decode instances, every policy over a
sweep of rates, each with the improvement rate that suits it best at that rate. Writes
`paper-8b.md` and its figures, and with `--traces DIR` `paper-traces.md` as well: Mooncake's
conversation trace, alone and with ServeGen's short requests as background, at several speeds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.paper.cases import Case, Load, Outcome, light, run_cases
from bench.paper.curves import Study, critical_rate
from bench.paper.figures import draw_cdfs, draw_curves
from bench.paper.report import paper_report, trace_report
from sglang_cdsp.planner.policies import POLICY_NAMES
from sglang_cdsp.simulator.sweep import UNIFIED, is_regulated

BASELINES = ("fixed-sp:16", "fixed-sp:8", "loongserve", UNIFIED)
OURS = ("single-chunk", "cdsp-paper", "cdsp", "cdsp-late")
POLICIES = BASELINES + tuple(name for name in OURS if name in POLICY_NAMES)
IMPROVEMENT_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
RATES = {
    "short": (2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0),
    "medium": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0),
    "long": (0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0),
}
SPEEDS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
TRACE = "mooncake_conversation_trace.jsonl"
BACKGROUND = "servegen_m-large_4rps_1200s.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("bench/results"))
    add("--requests", type=int, default=1200, help="per run of a drawn workload")
    add("--seeds", type=int, default=3)
    add("--processes", type=int, default=2)
    add("--traces", type=Path, metavar="DIR", help=f"where {TRACE} and {BACKGROUND} are")
    add("--only", choices=("drawn", "traces"), help="one of the two reports")
    args = parser.parse_args()
    if args.only != "traces":
        drawn(args)
    if args.traces and args.only != "drawn":
        traces(args)


def drawn(args: argparse.Namespace) -> None:
    """Short, Medium and Long."""
    seeds = range(args.seeds)
    loads = [Load(name, rates, args.requests) for name, rates in RATES.items()]
    outcomes = run_cases(grid(loads, POLICIES, IMPROVEMENT_RATES, seeds), args.processes)
    studies = [study(load, outcomes, seeds) for load in loads]
    # A closer look at the rates that the baselines still bear, with the regulator as well.
    extra: list[Case] = []
    for s in studies:
        rates = sorted({critical_rate(s, name) for name in ("fixed-sp:8", "loongserve")})
        extra += grid([s.load], POLICIES, IMPROVEMENT_RATES, seeds, rates)
        extra += [
            Case(s.load, rate, name, 0.0, seed, s.table(name))
            for rate, name, seed in itertools.product(rates, POLICIES, seeds)
            if is_regulated(name)
        ]
    outcomes |= run_cases((case for case in extra if case not in outcomes), args.processes)
    studies = [study(load, outcomes, seeds) for load in loads]
    (args.out / "paper-8b.md").write_text(paper_report(studies, args.requests), encoding="utf-8")
    draw_curves(studies, args.out / "paper-8b-rates.png", "requests/s")
    rates_of_cdfs = [critical_rate(s, "fixed-sp:8") for s in studies]
    draw_cdfs(studies, rates_of_cdfs, args.out / "paper-8b-cdf.png")


def traces(args: argparse.Namespace) -> None:
    """Mooncake alone and with ServeGen; the three parts of the trace stand for seeds."""
    trace, background = args.traces / TRACE, args.traces / BACKGROUND
    loads = [
        Load("Mooncake", SPEEDS, trace=trace),
        Load("Mooncake and ServeGen", SPEEDS, trace=trace, background=background),
    ]
    names = [name for name in POLICIES if name != "fixed-sp:16"]
    outcomes = run_cases(grid(loads, names, (0.1, 0.3, 0.5, 0.7), range(3)), args.processes)
    studies = [study(load, outcomes, range(3)) for load in loads]
    (args.out / "paper-traces.md").write_text(trace_report(studies), encoding="utf-8")
    draw_curves(studies, args.out / "paper-traces-speeds.png", "speed")


def grid(
    loads: Sequence[Load],
    policies: Iterable[str],
    improvement_rates: Sequence[float],
    seeds: Iterable[int],
    rates: Sequence[float] = (),
) -> list[Case]:
    """Every policy at every rate (default: the load's), with every improvement rate it has."""
    return [
        Case(load, rate, policy, r, seed)
        for load in loads
        for rate, policy, seed in itertools.product(rates or load.rates, policies, seeds)
        for r in (improvement_rates if is_regulated(policy) else (0.0,))
    ]


def study(load: Load, outcomes: dict[Case, Outcome], seeds: Iterable[int]) -> Study:
    """One load's curves."""
    mine = {case: outcome for case, outcome in outcomes.items() if case.load == load}
    ran = {case.policy for case in mine}
    policies = tuple(name for name in POLICIES if name in ran)
    return Study(load, policies, mine, tuple(seeds), tuple(light(load, seed) for seed in seeds))


if __name__ == "__main__":
    main()
