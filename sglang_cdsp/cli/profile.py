"""``python -m sglang_cdsp profile``: measure a real pool and fit its latency model.

A prefill server with ``--cdsp`` is started for the purpose; forced plans put a chunk of each
length behind a history of each length on a group of each SP size, and the plan log tells how long
the chunks really took. Half of the grid is fitted, the other half judges the fit (Tetris, Eq. 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from sglang_cdsp.demo.stack import prefill_only, running
from sglang_cdsp.planner.fit import ErrorReport, Sample, fit_model
from sglang_cdsp.planner.latency import builtin_model

# SGLang's own stand-in for a decode server: the first token is sampled, no KV is sent.
NO_DECODE = "2.2.2.2"
TOKEN = 7
LOGGED_WITHIN_S = 10.0


class ProfileError(RuntimeError):
    """The pool could not be measured; says why."""


@dataclass(frozen=True)
class Point:
    """One cell of the grid: a chunk of ``tokens`` after ``history`` on ``size`` instances."""

    size: int
    history: int
    tokens: int

    @property
    def plan(self) -> list[tuple[int, list[int]]]:
        """The forced plan that measures it; its last chunk is the one that counts."""
        group = list(range(self.size))
        before = [(self.history, group)] if self.history else []
        return [*before, (self.tokens, group)]


def grid(sizes: Sequence[int], longest: int, steps: int) -> list[Point]:
    """Chunk lengths and histories from ``longest`` downwards by halves, and no history at all."""
    lengths = [longest >> step for step in reversed(range(steps)) if longest >> step]
    histories = [0, *lengths]
    return [Point(s, h, t) for s in sizes for h in histories for t in lengths]


def measure(url: str, plan_log: Path, points: Sequence[Point], repeats: int) -> list[Sample]:
    """Median time of each point over ``repeats`` runs, interleaved, after one warm-up round.

    Raises:
        ProfileError: the server refused or failed a plan.
    """
    seconds: dict[Point, list[float]] = {point: [] for point in points}
    warm_up = [max((p for p in points if p.size == s), key=_work) for s in {p.size for p in points}]
    rounds = [*warm_up, *(point for _ in range(repeats) for point in points)]
    for index, point in enumerate(tqdm(rounds, desc="measuring", unit="chunk", file=sys.stderr)):
        rid = f"profile-{index}"
        _send(url, rid, point)
        taken = _read(plan_log, rid)
        if index >= len(warm_up):
            seconds[point].append(taken)
    return [
        Sample(point.size, point.history, point.tokens, statistics.median(values))
        for point, values in seconds.items()
    ]


def _work(point: Point) -> int:
    return point.tokens + point.history


def _send(url: str, rid: str, point: Point) -> None:
    body: dict[str, Any] = {
        "rid": rid,
        "input_ids": [TOKEN] * _work(point),
        "sampling_params": {
            "max_new_tokens": 1,
            "temperature": 0,
            "custom_params": {"cdsp_plan": point.plan},
        },
        "bootstrap_host": NO_DECODE,
        "bootstrap_room": 0,
    }
    response = requests.post(f"{url}/generate", json=body, timeout=600)
    if response.status_code != 200:
        raise ProfileError(f"{point}: {response.text}")


def _read(plan_log: Path, rid: str) -> float:
    # The line is written once every instance has freed its slots, a moment after the answer.
    deadline = time.monotonic() + LOGGED_WITHIN_S
    while time.monotonic() < deadline:
        for record in _records(plan_log):
            if record["rid"] == rid and record["chunks"]:
                chunk = record["chunks"][-1]
                return float(chunk["end_s"] - chunk["start_s"])
        time.sleep(0.01)
    raise ProfileError(f"the plan log {plan_log} says nothing of {rid}")


def _records(plan_log: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    for line in reversed(plan_log.read_text(encoding="utf-8").splitlines()):
        yield json.loads(line)


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
    parser.add_argument("--sp-sizes", default="1,2", help="SP sizes to measure (default 1,2)")
    parser.add_argument("--out", type=Path, required=True, help="latency model file to write")
    parser.add_argument("--max-tokens", type=int, default=4096, help="longest chunk and history")
    parser.add_argument("--steps", type=int, default=5, help="lengths per axis, halved each time")
    parser.add_argument("--repeats", type=int, default=3, help="runs per point; the median counts")
    parser.add_argument("--log-directory", type=Path, help="keep the server's log there")
    parser.add_argument("flags", nargs="*", help="further server flags, after a bare --")


def run(options: argparse.Namespace) -> int:
    """Measure, fit, write, report; returns the exit status."""
    try:
        sizes = sorted({int(size) for size in options.sp_sizes.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 1:
        print(f"--sp-sizes {options.sp_sizes!r} is not a list like 1,2,4", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        plan_log, stand_in = Path(scratch) / "plans.jsonl", Path(scratch) / "stand-in.json"
        builtin_model().save(stand_in)  # plans are forced; the server need not measure itself
        flags = (
            *("--cdsp", "--dp-size", str(max(2, sizes[-1])), "--cdsp-allow-request-plans"),
            *("--cdsp-plan-log", str(plan_log), "--cdsp-latency-model", str(stand_in)),
            *options.flags,
        )
        logs = options.log_directory or Path(scratch) / "logs"
        points = grid(sizes, options.max_tokens, options.steps)
        with running(
            prefill_only(options.model_path, flags=flags),
            logs,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        ) as stack:
            info = requests.get(f"{stack.url}/server_info", timeout=30).json()
            samples = measure(stack.url, plan_log, points, options.repeats)
    device = str(info.get("device") or "unknown")
    name = options.model_path.name
    tp_size = int(info.get("tp_size") or 1)
    model, reports = fit_model(samples, model=name, device=device, tp_size=tp_size)
    model.save(options.out)
    print(format_errors(reports))
    print(f"latency model of {name} on {device} written to {options.out}")
    return 0
