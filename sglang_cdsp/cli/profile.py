"""``python -m sglang_cdsp profile``: measure a real pool and fit its latency model.

A prefill server with ``--cdsp`` is started for the purpose. Forced plans cut a prompt into equal
chunks on groups of each SP size, and the plan log tells how long each chunk really took, after how
much history. Half of that grid is fitted, the other half judges the fit (Tetris, Equation 1).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from sglang_cdsp.cli.parser import integers
from sglang_cdsp.planner.errors import LatencyModelError
from sglang_cdsp.planner.fit import ErrorReport, Sample, fit_model
from sglang_cdsp.planner.latency import builtin_model
from sglang_cdsp.simulator.plan_log import read_lines
from sglang_cdsp.testing.first_token import post_prompt
from sglang_cdsp.testing.processes import ServerFailedError
from sglang_cdsp.testing.stack import prefill_only, running

TOKEN = 7
LOGGED_WITHIN_S = 10.0
MOST_PER_LENGTH = 8
"""Chunks of one length that count: short ones would else outnumber the long ones in the fit."""


class ProfileError(RuntimeError):
    """The pool could not be measured; says why."""


@dataclass(frozen=True)
class Point:
    """One cell of the grid: a chunk of ``tokens`` after ``history`` on ``size`` instances."""

    size: int
    history: int
    tokens: int


@dataclass(frozen=True)
class Chain:
    """A prompt of ``count`` chunks of ``tokens`` tokens on groups of ``size`` instances."""

    size: int
    tokens: int
    count: int

    def plan(self, group: int) -> list[tuple[int, list[int]]]:
        """The forced plan on the pool's ``group``-th group of this size."""
        members = list(range(group * self.size, (group + 1) * self.size))
        return [(self.tokens, members)] * self.count

    def points(self) -> dict[int, Point]:
        """The grid points that it measures, by chunk index: evenly spread over the prompt."""
        stride = -(-self.count // MOST_PER_LENGTH)
        return {
            index: Point(self.size, index * self.tokens, self.tokens)
            for index in range(0, self.count, stride)
        }


def chains(sizes: Sequence[int], longest: int, steps: int) -> list[Chain]:
    """Prompts of up to ``longest`` tokens; lengths fall by a quarter and by a third in turn.

    The grid is the triangle that one prompt can reach: history and chunk together are never
    longer than ``longest``.
    """
    halves = [longest >> step for step in range((steps + 1) // 2)]
    lengths = [length for half in halves for length in (half, half * 3 // 4)][:steps]
    return [Chain(s, t, longest // t) for s in sizes for t in lengths if t]


def measure(
    url: str, plan_log: Path, plans: Sequence[Chain], repeats: int, instances: int
) -> dict[Point, list[float]]:
    """Seconds of each point, from interleaved rounds over ``plans`` after one warm-up a size.

    All groups of a size run the same chain at the same moment: in a pool that serves, the other
    instances are busy too, and they share memory bandwidth and caches.

    Raises:
        ProfileError: the server refused or failed a plan.
    """
    found: dict[Point, list[float]] = {p: [] for plan in plans for p in plan.points().values()}
    warm_up = [min((c for c in plans if c.size == s), key=_chunks) for s in {c.size for c in plans}]
    rounds = [*warm_up, *(plan for _ in range(repeats) for plan in plans)]
    for index, plan in enumerate(tqdm(rounds, desc="measuring", unit="prompt", file=sys.stderr)):
        groups = range(instances // plan.size)
        rids = [f"profile-{index}-{group}" for group in groups]
        with ThreadPoolExecutor(len(rids)) as threads:
            list(threads.map(partial(_send, url, plan), rids, groups))
        if index >= len(warm_up):
            for rid in rids:
                times = _read(plan_log, rid)
                for chunk, point in plan.points().items():
                    found[point].append(times[chunk])
    return found


def typical(found: Mapping[Point, Sequence[float]]) -> list[Sample]:
    """One sample a point: the first quartile of its runs.

    Other work on the machine only ever adds time; the quartile bears up to half of the runs being
    disturbed, and unlike the minimum does not chase the luckiest one.
    """
    return [Sample(p.size, p.history, p.tokens, _quartile(s)) for p, s in found.items()]


def noise(found: Mapping[Point, Sequence[float]]) -> float:
    """Median deviation of single runs from what counts for their point, as a share of it."""
    return statistics.median(
        abs(value / _quartile(values) - 1) for values in found.values() for value in values
    )


def _quartile(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def _chunks(chain: Chain) -> int:
    return chain.count


def _send(url: str, chain: Chain, rid: str, group: int) -> None:
    prompt = [TOKEN] * (chain.tokens * chain.count)
    response = post_prompt(url, prompt, rid=rid, plan=chain.plan(group))
    if response.status_code != 200:
        raise ProfileError(f"{chain} failed: {response.text}; try --max-tokens with less")


def _read(plan_log: Path, rid: str) -> list[float]:
    # The line is written once every instance has freed its slots, a moment after the answer.
    deadline = time.monotonic() + LOGGED_WITHIN_S
    while time.monotonic() < deadline:
        for record in reversed(read_lines(plan_log)):
            if record["rid"] == rid and record["outcome"] == "finished":
                return [chunk["end_s"] - chunk["start_s"] for chunk in record["chunks"]]
        time.sleep(0.01)
    raise ProfileError(f"the plan log {plan_log} says nothing of {rid}")


def format_errors(reports: Sequence[ErrorReport]) -> str:
    """The held-out errors as a table."""
    lines = ["SP size  held-out points  mean error  max error  worst point (history + chunk)"]
    for report in reports:
        worst = f"{report.worst.history} + {report.worst.tokens}"
        lines.append(
            f"{report.sp:7d}  {report.samples:15d}  {report.mean:10.1%}  {report.maximum:9.1%}  "
            f"{worst}"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model-path", type=Path, required=True, help="the model to serve")
    parser.add_argument(
        "--sp-sizes", type=integers, default=(1, 2), help="SP sizes to measure (default 1,2)"
    )
    parser.add_argument("--out", type=Path, required=True, help="latency model file to write")
    parser.add_argument(
        "--max-tokens", type=int, default=8192, help="longest prompt: history and chunk (8192)"
    )
    parser.add_argument(
        "--steps", type=int, default=11, help="chunk lengths, 3/4 and 2/3 of the one before (11)"
    )
    parser.add_argument(
        "--repeats", type=int, default=4, help="rounds; their first quartile counts"
    )
    parser.add_argument("--samples", type=Path, help="write every measured time there, JSON lines")
    parser.add_argument("--log-directory", type=Path, help="keep the server's log there")
    parser.add_argument("flags", nargs="*", help="further server flags, after a bare --")


def run(options: argparse.Namespace) -> int:
    """Measure, fit, write, report; returns the exit status."""
    sizes = sorted(set(options.sp_sizes))
    if sizes[0] < 1 or options.repeats < 1 or options.steps < 3:
        print("profile: give SP sizes and --repeats >= 1, and --steps >= 3", file=sys.stderr)
        return 2
    try:
        found, info = _serve_and_measure(options, sizes)
        model, reports = fit_model(
            typical(found),
            model=options.model_path.name,
            device=str(info.get("device") or "unknown"),
            tp_size=int(info.get("tp_size") or 1),
        )
    except (ProfileError, ServerFailedError, LatencyModelError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    measured = {"repeats": options.repeats, "max_tokens": options.max_tokens, "noise": noise(found)}
    model = dataclasses.replace(model, fit={**model.fit, **measured})
    model.save(options.out)
    if options.samples:
        lines = [json.dumps({**dataclasses.asdict(p), "seconds": s}) for p, s in found.items()]
        options.samples.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(format_errors(reports))
    print(f"half of all single runs lie within {noise(found):.1%} of what was fitted")
    print(f"latency model of {model.model} on {model.device} written to {options.out}")
    return 0


def _serve_and_measure(
    options: argparse.Namespace, sizes: Sequence[int]
) -> tuple[dict[Point, list[float]], dict[str, Any]]:
    instances = max(2, sizes[-1])
    with tempfile.TemporaryDirectory() as scratch:
        plan_log, stand_in = Path(scratch) / "plans.jsonl", Path(scratch) / "stand-in.json"
        builtin_model().save(stand_in)  # plans are forced; the server need not measure itself
        flags = (
            *("--cdsp", "--dp-size", str(instances), "--cdsp-allow-request-plans"),
            *("--cdsp-plan-log", str(plan_log), "--cdsp-latency-model", str(stand_in)),
            *options.flags,
        )
        with running(
            prefill_only(options.model_path, flags=flags),
            options.log_directory or Path(scratch) / "logs",
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        ) as stack:
            info = requests.get(f"{stack.url}/server_info", timeout=30).json()
            plans = chains(sizes, options.max_tokens, options.steps)
            return measure(stack.url, plan_log, plans, options.repeats, instances), info
