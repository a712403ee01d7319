"""``python -m sglang_cdsp replay``: compare a real run's plan log with its simulation.

Every finished request of the log arrives in the simulator when it arrived at the server; see
`sglang_cdsp.simulator.replay` for the two ways of replaying it. Give the planner's options as the
server had them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.cli.outputs import OutputError, check_file, unwritable
from sglang_cdsp.cli.parser import MOST, MOST_TOKENS, integer, integers, number
from sglang_cdsp.cli.pool_flags import add_form_flags, range_warning, read_form
from sglang_cdsp.planner.decode_price import USUAL_SHARE
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.policies import default_sp_sizes
from sglang_cdsp.simulator.decode_fit import decode_samples, fit_decode, fit_overrun
from sglang_cdsp.simulator.errors import SimulationError
from sglang_cdsp.simulator.plan_log import Recorded, instances_named, read_plan_log
from sglang_cdsp.simulator.replay import (
    NOBODY,
    PERCENTILES,
    Beside,
    Comparison,
    chunk_errors,
    fitted_speed,
    replay,
)
from sglang_cdsp.simulator.setup import DecodeModel, Setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    server = CdspArgs()
    add = parser.add_argument
    add("plan_log", type=Path, metavar="PLANLOG", help="what --cdsp-plan-log wrote")
    add("--latency-model", type=Path, required=True, metavar="FILE", help="of the pool: `profile`")
    add("--policy", metavar="NAME", help="default: the one that planned most of the log")
    add("--instances", type=integer(), metavar="N", help="default: as many as the log's plans name")
    add("--instances-per-node", type=integer(), metavar="N", help="default: the whole pool")
    add("--sp-sizes", type=integers, metavar="N,N,...", help="default: powers of two")
    add("--improvement-rate", type=float, default=server.improvement_rate, metavar="R")
    add("--min-chunk", type=integer(most=MOST_TOKENS), default=server.min_chunk, metavar="TOKENS")
    add(
        "--layers",
        type=integer(1),
        default=Setup.layers,
        metavar="N",
        help="of the model: prompts pass between them (default: %(default)s)",
    )
    add(
        "--preempt-budget",
        type=number(0.0, 100.0),
        default=server.preempt_budget,
        metavar="SHARE",
        help="as the server had it (default: %(default)s)",
    )
    add("--page-size", type=integer(most=MOST), default=1, metavar="TOKENS")
    add(
        "--kv-tokens",
        type=integer(most=MOST_TOKENS),
        default=65_536,
        metavar="N",
        help="KV slots per instance",
    )
    add_form_flags(parser)
    add("--fit-speed", action="store_true", help="one factor per SP size, from the log's chunks")
    add("--json", action="store_true", help="print one JSON object")
    add("--out", type=Path, metavar="FILE", help="write each request's TTFTs, JSON lines")


def run(options: argparse.Namespace) -> int:
    """Replays the log both ways; exit status 2 if the log or a flag is wrong."""
    try:
        recorded = read_plan_log(options.plan_log)
        setup = _setup(options, recorded)
        check_file(options.out, "--out")
        warning = range_warning(setup, [r.request for r in recorded])
        if warning:
            print(f"python -m sglang_cdsp replay: {warning}", file=sys.stderr)
        true_model = setup.model
        beside = _beside(setup, recorded)
        if options.fit_speed:
            true_model = fitted_speed(recorded, setup.model, beside)
            setup = replace(setup, true_model=true_model)
        found = {
            "recorded plans": replay(recorded, setup, plans=True),
            "planned anew": replay(recorded, setup, plans=False),
        }
        chunks = np.abs(chunk_errors(recorded, true_model, beside))
    except (PlannerError, SimulationError, OutputError) as error:
        print(f"python -m sglang_cdsp replay: {error}", file=sys.stderr)
        return 2
    shown = {name: comparison.to_dict() for name, comparison in found.items()}
    if options.json:
        model = {"mean": float(chunks.mean()), "worst": float(chunks.max())}
        found_decode = {}
        if setup.one_server:
            found_decode = {
                "decode_model": asdict(setup.decode),
                "overrun_s": setup.one_server.overrun_s,
            }
        said = {"policy": setup.policy, "chunk_error": model, **found_decode, "replays": shown}
        print(json.dumps(said))
    else:
        print(f"{len(recorded)} requests under {setup.policy}, {len(chunks)} chunks")
        print(f"chunk times: off by {chunks.mean():.1%} on average, {chunks.max():.1%} at worst")
        print(_table(shown))
        if setup.one_server:
            print(_tpots(shown, setup.decode, setup.one_server.overrun_s))
    return _write(options.out, _lines(recorded, found)) if options.out else 0


def _write(path: Path, text: str) -> int:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        line = unwritable(path, "--out", error)
        print(f"python -m sglang_cdsp replay: {line}", file=sys.stderr)
        return 1
    return 0


def _setup(options: argparse.Namespace, recorded: tuple[Recorded, ...]) -> Setup:
    instances = options.instances or instances_named(recorded)
    form = read_form(options, instances, one_server=any(r.end_s is not None for r in recorded))
    if form and form.decode_share is None and not any(r.decode_shares for r in recorded):
        form = replace(form, decode_share=USUAL_SHARE)  # a server that knew no other one
    decode = options.decode_model
    if form and decode is None:
        decode = fit_decode(decode_samples(recorded))
    if form and decode:
        asked = Beside(form.decode_share or USUAL_SHARE).asked
        form = replace(form, overrun_s=fit_overrun(recorded, decode, asked))
    return Setup(
        one_server=form,
        decode=decode or DecodeModel(),
        policy=options.policy or Counter(r.policy for r in recorded).most_common(1)[0][0],
        model=LatencyModel.load(options.latency_model),
        sp_sizes=tuple(sorted(set(options.sp_sizes or default_sp_sizes(instances)))),
        instances=instances,
        instances_per_node=options.instances_per_node or instances,
        improvement_rate=options.improvement_rate,
        min_chunk=options.min_chunk,
        page_size=options.page_size,
        kv_tokens=options.kv_tokens,
        layers=options.layers,
        preempt_budget=options.preempt_budget,
        online_correction=True,
    )


def _beside(setup: Setup, recorded: tuple[Recorded, ...]) -> Beside:
    """What decode took of chunks' times."""
    if setup.one_server is None:
        return NOBODY
    steps = [sample.step_s(setup.decode) for sample in decode_samples(recorded)]
    overrun_steps = setup.one_server.overrun_s * len(steps) / sum(steps) if steps else 0.0
    return Beside(setup.one_server.decode_share or USUAL_SHARE, overrun_steps)


def _lines(recorded: tuple[Recorded, ...], found: dict[str, Comparison]) -> str:
    rows = []
    for position, r in enumerate(recorded):
        row: dict[str, Any] = {"rid": r.request.rid, "prompt_tokens": r.request.prompt_tokens}
        row["real_s"] = r.ttft_s
        for name, comparison in found.items():
            row[f"{name.replace(' ', '_')}_s"] = float(comparison.simulated[position])
        rows.append(json.dumps(row) + "\n")
    return "".join(rows)


def _tpots(shown: dict[str, dict[str, Any]], decode: DecodeModel, overrun_s: float) -> str:
    """Decode in one server, beside the table: what was fitted, and the error of mean TPOT."""
    step = f"decode step: {decode.a:.4g} s + {decode.b:.3g} a request + {decode.c:.3g} a KV token"
    errors = [
        f"{name} {figures['mean_tpot_error']:+.1%}"
        for name, figures in shown.items()
        if "mean_tpot_error" in figures
    ]
    step += f", stretches overrun by {overrun_s:.3g} s"
    return f"{step}; mean TPOT off by: {', '.join(errors)}"


def _table(shown: dict[str, dict[str, Any]]) -> str:
    heads = ("mean", "median", "worst", *(f"P{p} TTFT" for p in PERCENTILES), "mean TTFT")
    lines = ["error of             each request's TTFT                of the run's"]
    lines.append(f"{'':16}" + "".join(f"{head:>10}" for head in heads))
    for name, figures in shown.items():
        each = figures["request_error"]
        line = f"{name:16}{each['mean']:10.1%}{each['p50']:10.1%}{each['worst']:+10.1%}"
        line += "".join(f"{figures[f'p{p}_ttft_error']:+10.1%}" for p in PERCENTILES)
        lines.append(line + f"{figures['mean_ttft_error']:+10.1%}")
    return "\n".join(lines)
