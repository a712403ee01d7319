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

from sglang_cdsp.cli.outputs import OutputError, check_folder
from sglang_cdsp.cli.parser import number
from sglang_cdsp.cli.pool_flags import (
    Source,
    add_pool_flags,
    range_warning,
    read_setup,
    read_source,
)
from sglang_cdsp.cli.progress import Progress, over
from sglang_cdsp.planner.errors import OptionError, PlannerError
from sglang_cdsp.planner.policies import DEFAULT_POLICY, POLICY_HELP, make_policy
from sglang_cdsp.planner.policies.options import DEFAULT_IMPROVEMENT_RATE
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
    known = f"{UNIFIED}, {POLICY_HELP} (default: the server's, {DEFAULT_POLICY})"
    add("--policy", default=DEFAULT_POLICY, metavar="NAME[,NAME...]", help=known)
    add(
        "--improvement-rate",
        default=f"{DEFAULT_IMPROVEMENT_RATE:g}",
        metavar="R|auto|FILE",
        help=f"FILE: what `tune` wrote (default: the server's, {DEFAULT_IMPROVEMENT_RATE:g})",
    )
    add(
        "--noise",
        type=number(0.0, 10.0),
        default=0.0,
        metavar="SIGMA",
        help="lognormal, on chunk times",
    )
    add("--find-max-rate", action="store_true", help="the highest rate that keeps to --slo")
    add("--slo", type=_times, default=25.0, metavar="25x", help="times light-load latency")
    add("--json", action="store_true", help="print one JSON object")
    add("--out", type=Path, metavar="DIR", help="write request lines, Chrome traces, figures")
    add(
        "--token-times",
        action="store_true",
        help="write with --out the gap before every output token too: megabytes",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the policies; exit status 2 if a flag or a trace is wrong."""
    try:
        policies, setup, source, speed = _read(options)
        check_folder(options.out, "--out")
        variants = {name: variant(setup, name) for name in policies}
        rates = _ImprovementRates(options.improvement_rate, source, options.seed)
        if options.find_max_rate:
            shown = _find(variants, rates, source, speed, options)
        else:
            results = _run(variants, rates, source, speed, options)
            shown = {name: summarise(result).to_dict() for name, result in results.items()}
    except InvariantError:
        raise
    except (PlannerError, SimulationError, TraceError, OutputError) as error:
        _say(error)
        return 2
    status = 0
    written: dict[Path, str] = {}
    if options.out and not options.find_max_rate:
        status, written = _write(results, options)
    if options.json:
        described = {
            **setup.to_dict(),
            "source": source.name,
            "rate": speed * source.rate,
            "improvement_rate": options.improvement_rate,
        }
        del described["policy"], described["unified"]  # differ by policy
        files = {"files": [str(path) for path in written]} if written else {}
        print(json.dumps({"policies": shown, "setup": described, **files}, allow_nan=False))
    else:
        print(_table(shown))
        for path, what in written.items():
            print(f"wrote {path}: {what}")
    return status


def _say(message: object) -> None:
    print(f"python -m sglang_cdsp simulate: {message}", file=sys.stderr)


def _write(results: dict[str, Result], options: argparse.Namespace) -> tuple[int, dict[Path, str]]:
    """Writes the files; exit status 1 if that fails. Without matplotlib there is no figure."""
    try:
        written = write_outputs(
            results, options.instances_per_node, options.out, tokens=options.token_times
        )
        figure = options.out / "ttft.png"
        try:
            _plot(results, figure)
            written[figure] = "TTFT in seconds by share of requests and by length; chunks"
        except PlotsError as error:
            _say(f"no {figure.name}: {error}")
    except OSError as error:
        _say(f"--out {options.out}: {error.strerror or error}; the table is all there is")
        return 1, {}
    return 0, written


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
        for s in over([speed * factor for factor in factors], f"{setup.policy}: tuning"):
            tuned.append(tune(setup, s * self.source.rate, [self.source.at(s, self.seed)]))
        return replace(setup, improvement_rates=table(tuned)[MAPPING_KEY])


def _read(options: argparse.Namespace) -> tuple[list[str], Setup, Source, float]:
    """Policies, set-up, requests and their speed; ValueError names the flag that is wrong."""
    for flag in ("rate", "speed"):
        value = getattr(options, flag)
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"--{flag} is {value:g}; it must be above 0")
    if options.find_max_rate and options.out:
        raise OptionError("--out goes without --find-max-rate: which of its runs to write?")
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
) -> dict[str, Result]:
    """Simulates every policy once."""
    requests = source.at(speed, options.seed)
    warning = range_warning(next(iter(variants.values())), requests)
    if warning:
        _say(warning)
    results: dict[str, Result] = {}
    for name, setup in variants.items():
        suited = rates.at(setup, speed, NEARBY)
        with Progress(name, len(requests)) as progress:

            def show(ended: int, _: int, progress: Progress = progress) -> None:
                progress.update(ended - progress.done)

            results[name] = simulate(suited, requests, progress=show)
        failed = [r.error for r in results[name].records if r.error]
        if failed:
            print(f"{name}: {len(failed)} failed, the first: {failed[0]}", file=sys.stderr)
    return results


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
        with Progress(f"{name}: bisecting") as progress:

            def once(speed: float, setup: Setup = setup, progress: Progress = progress) -> Summary:
                progress.update()
                requests = source.at(speed, options.seed)
                return summarise(simulate(rates.at(setup, speed), requests))

            best, figures = max_speed(once, light, options.slo, first=speed)
        found[name] = {
            "max_rate_rps": best * source.rate,
            **(figures.to_dict() if figures else {}),
        }
    return found


def _times(text: str) -> float:
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = math.nan
    if not 1 <= factor < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a factor of at least 1 like 25x")
    return factor


def _plot(results: dict[str, Result], path: Path) -> None:
    done = {n: [r for r in x.records if r.ttft_s is not None] for n, x in results.items()}
    run_plots(
        {name: np.array([r.ttft_s for r in records]) for name, records in done.items()},
        {n: np.array([r.request.prompt_tokens for r in records]) for n, records in done.items()},
        {name: summarise(result).sp_histogram for name, result in results.items()},
        path,
    )


def _table(shown: dict[str, dict[str, Any]]) -> str:
    """One line a policy; the second heading has the units."""
    width = max(map(len, shown), default=0)
    heads = ("TTFT mean", "P50", "P90", "P99", "TBT P50", "P99", "rate", "done", "failed", "idle")
    units = (*["s"] * 6, "req/s", *["requests"] * 2, "of time")
    found = any("max_rate_rps" in figures for figures in shown.values())
    most = ("max rate", "req/s") if found else ("", "")
    lines = [
        f"{'':{width}}" + (f"{first:>10}" if found else "") + "".join(f"{h:>10}" for h in rest)
        for first, rest in zip(most, (heads, units), strict=True)
    ]
    lines[1] += "  chunks by SP size"
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
