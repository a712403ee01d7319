"""``python -m sglang_cdsp simulate``: run policies over requests on a simulated pool.

The planner and the policies are the server's own. What the figures mean is written in
`sglang_cdsp.simulator.metrics`, where drawn requests come from in `.workload`, and which traces are
read in `.traces`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sglang_cdsp.cli.pool_flags import Source, add_pool_flags, read_setup, read_source
from sglang_cdsp.planner.errors import OptionError, PlannerError
from sglang_cdsp.planner.policies import POLICY_HELP, make_policy
from sglang_cdsp.planner.regulator import MAPPING_KEY, read_rates
from sglang_cdsp.simulator.engine import Result, simulate
from sglang_cdsp.simulator.errors import InvariantError, SimulationError
from sglang_cdsp.simulator.metrics import Summary, light_load, summarise
from sglang_cdsp.simulator.outputs import write_outputs
from sglang_cdsp.simulator.plots import PlotsError, run_plots
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.sweep import UNIFIED, is_regulated, max_speed, variant
from sglang_cdsp.simulator.traces import TraceError
from sglang_cdsp.simulator.tune import table, tune

NEARBY = (0.5, 0.75, 1.0, 1.25, 1.5)
"""A run with `--improvement-rate auto` tunes for these multiples of its arrival rate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_pool_flags(parser)
    add = parser.add_argument
    add("--rate", type=float, metavar="R", help="requests/s (default: 1, or as recorded)")
    add("--speed", type=float, metavar="S", help="replay a trace S times as fast")
    known = f"{UNIFIED}, {POLICY_HELP} (default: cdsp)"
    add("--policy", default="cdsp", metavar="NAME[,NAME...]", help=known)
    add("--improvement-rate", default="0.1", metavar="R|auto|FILE", help="FILE: what `tune` wrote")
    add("--noise", type=float, default=0.0, metavar="SIGMA", help="lognormal, on chunk times")
    add("--find-max-rate", action="store_true", help="the highest rate that keeps to --slo")
    add("--slo", type=_times, default=25.0, metavar="25x", help="times light-load latency")
    add("--json", action="store_true", help="print one JSON object")
    add("--out", type=Path, metavar="DIR", help="write request lines, Chrome traces, figures")


def run(options: argparse.Namespace) -> int:
    """Runs the policies; exit status 2 if a flag or a trace is wrong."""
    try:
        policies, setup, source, speed = _read(options)
        variants = {name: variant(setup, name) for name in policies}
        rates = _ImprovementRates(options.improvement_rate, source, options.seed)
        report = _find if options.find_max_rate else _run
        shown = report(variants, rates, source, speed, options)
    except InvariantError:
        raise
    except (PlannerError, SimulationError, TraceError, PlotsError, OSError) as error:
        print(f"python -m sglang_cdsp simulate: {error}", file=sys.stderr)
        return 2
    if options.json:
        described = {
            **setup.to_dict(),
            "source": source.name,
            "rate": speed * source.rate,
            "improvement_rate": options.improvement_rate,
        }
        del described["policy"], described["unified"]  # differ by policy
        print(json.dumps({"policies": shown, "setup": described}, allow_nan=False))
    else:
        print(_table(shown))
    return 0


class _ImprovementRates:
    """The value of `--improvement-rate`: one rate, a table, or a table tuned for the run."""

    def __init__(self, text: str, source: Source, seed: int) -> None:
        self.tuned, self.source, self.seed = text == "auto", source, seed
        self.rate = 0.0
        self.table: Mapping[str, Any] | None = None
        if self.tuned:
            return
        try:
            self.rate = float(text)
        except ValueError:
            if not Path(text).is_file():
                raise OptionError(
                    f"--improvement-rate {text}: neither a number, nor auto, nor a file"
                ) from None
            self.table = read_rates(Path(text), "--improvement-rate")

    def at(self, setup: Setup, speed: float, factors: Sequence[float] = (1.0,)) -> Setup:
        """The set-up with what suits its policy at this speed; auto tunes for speed * factors."""
        if not self.tuned or not is_regulated(setup.policy):
            return replace(setup, improvement_rate=self.rate, improvement_rates=self.table)
        tuned = []
        for s in _bar([speed * factor for factor in factors], f"{setup.policy}: tuning"):
            tuned.append(tune(setup, s * self.source.rate, [self.source.at(s, self.seed)]))
        return replace(setup, improvement_rates=table(tuned)[MAPPING_KEY])


def _read(options: argparse.Namespace) -> tuple[list[str], Setup, Source, float]:
    """Policies, set-up, requests and their speed; ValueError names the flag that is wrong."""
    for flag in ("rate", "speed"):
        value = getattr(options, flag)
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"--{flag} is {value:g}; it must be above 0")
    if options.speed is not None and (options.trace is None or options.rate is not None):
        raise OptionError("--speed goes with --trace and without --rate")
    policies = list(dict.fromkeys(options.policy.split(",")))
    setup, source = replace(read_setup(options), noise=options.noise), read_source(options)
    for name in policies:  # says what is wrong before anything runs
        chosen = variant(setup, name)
        make_policy(chosen.policy, chosen.make_options())
    if options.rate is not None:
        return policies, setup, source, source.speed(options.rate)
    return policies, setup, source, options.speed or 1.0


def _run(
    variants: dict[str, Setup],
    rates: _ImprovementRates,
    source: Source,
    speed: float,
    options: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Simulates every policy once; returns the JSON object of each."""
    requests = source.at(speed, options.seed)
    results: dict[str, Result] = {}
    for name, setup in variants.items():
        suited = rates.at(setup, speed, NEARBY)
        with _bar(requests, name) as bar:

            def show(ended: int, _: int, bar: Any = bar) -> None:
                bar.update(ended - bar.n)

            results[name] = simulate(suited, requests, progress=show)
        failed = [r.error for r in results[name].records if r.error]
        if failed:
            print(f"{name}: {len(failed)} failed, the first: {failed[0]}", file=sys.stderr)
    if options.out:
        write_outputs(results, options.instances_per_node, options.out)
        _plot(results, options.out)
    return {name: summarise(result).to_dict() for name, result in results.items()}


def _find(
    variants: dict[str, Setup],
    rates: _ImprovementRates,
    source: Source,
    speed: float,
    options: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Bisects every policy's highest rate; returns it with the figures at that rate."""
    base = replace(next(iter(variants.values())), unified=False)
    light = light_load(base, source.at(1.0, options.seed))
    found = {}
    for name, setup in variants.items():
        with _bar(None, f"{name}: bisecting") as bar:

            def once(speed: float, setup: Setup = setup, bar: Any = bar) -> Summary:
                bar.update()
                requests = source.at(speed, options.seed)
                return summarise(simulate(rates.at(setup, speed), requests))

            best, figures = max_speed(once, light, options.slo, first=speed)
        found[name] = {
            "max_rate_rps": best * source.rate,
            **(figures.to_dict() if figures else {}),
        }
    return found


def _bar(items: Sequence[Any] | None, name: str) -> Any:
    """A progress bar over the items, on stderr where that is a terminal, else nothing."""
    return tqdm(items, desc=name, file=sys.stderr, disable=None, leave=False)


def _times(text: str) -> float:
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a factor of at least 1 like 25x")
    return factor


def _plot(results: dict[str, Result], folder: Path) -> None:
    done = {n: [r for r in x.records if r.ttft_s is not None] for n, x in results.items()}
    run_plots(
        {name: np.array([r.ttft_s for r in records]) for name, records in done.items()},
        {n: np.array([r.request.prompt_tokens for r in records]) for n, records in done.items()},
        {name: summarise(result).sp_histogram for name, result in results.items()},
        folder / "ttft.png",
    )


def _table(shown: dict[str, dict[str, Any]]) -> str:
    """One line a policy; seconds unless the heading says otherwise."""
    width = max(map(len, shown), default=0)
    heads = ("TTFT mean", "P50", "P90", "P99", "TBT P50", "P99", "req/s", "done", "failed", "idle")
    found = any("max_rate_rps" in figures for figures in shown.values())
    lines = [
        " " * width + (f"{'max rate':>10}" if found else "") + "".join(f"{h:>10}" for h in heads)
    ]
    for name, figures in shown.items():
        line = f"{name:<{width}}"
        if found:
            line += f"{figures['max_rate_rps']:10.3f}"
        if "ttft_s" in figures:
            cells = [figures["ttft_s"][k] for k in ("mean", "p50", "p90", "p99")]
            cells += [figures["tbt_s"][k] for k in ("p50", "p99")]
            line += "".join(f"{'-':>10}" if c is None else f"{c:10.4f}" for c in cells)
            line += f"{figures['throughput_rps']:10.3f}{figures['completed']:10d}"
            line += f"{figures['failed']:10d}{figures['idle_fraction']:10.1%}"
            line += "  SP " + " ".join(f"{k}:{v}" for k, v in figures["sp_histogram"].items())
        lines.append(line)
    return "\n".join(lines)
