"""``python -m sglang_cdsp profile``: measure a real pool and fit its latency model.

A prefill server with ``--cdsp`` is started for the purpose. Forced plans cut a prompt into equal
chunks on groups of each SP size, and the plan log tells how long each chunk really took, after how
much history. Half of that grid is fitted, the other half judges the fit (Tetris, Equation 1).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import requests

from sglang_cdsp.cli.grid import Chain, Point, chains, noise, typical
from sglang_cdsp.cli.outputs import unwritable
from sglang_cdsp.cli.parser import MOST_TOKENS, integer, positive_integers
from sglang_cdsp.cli.profile_checks import ProfileError, check_all, model_expands
from sglang_cdsp.cli.progress import over
from sglang_cdsp.planner.errors import LatencyModelError
from sglang_cdsp.planner.fit import ErrorReport, fit_model
from sglang_cdsp.planner.latency import MEASURED_KEY, LatencyModel, builtin_model
from sglang_cdsp.simulator.plan_log import read_lines
from sglang_cdsp.stack.processes import ServerFailedError
from sglang_cdsp.testing.first_token import post_prompt
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import prefill_only, running

TOKEN = 7
LOGGED_WITHIN_S = 10.0


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
    for index, plan in enumerate(over(rounds, "measuring")):
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
    add = parser.add_argument
    add("--model-path", required=True, metavar="MODEL", help="a folder, or a name on the hub")
    add(
        "--sp-sizes",
        type=positive_integers,
        default=(1, 2),
        metavar="N,N,...",
        help="SP sizes to measure (default 1,2)",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="latency model file to write")
    add(
        "--max-tokens",
        type=integer(1, MOST_TOKENS),
        default=8192,
        metavar="N",
        help="longest prompt, history and chunk; the times of longer ones are extrapolated, so "
        "give the longest that you serve (8192)",
    )
    add(
        "--steps",
        type=integer(1, 64),
        default=11,
        metavar="N",
        help="chunk lengths, 3/4 and 2/3 of the one before (11)",
    )
    add(
        "--repeats",
        type=integer(1),
        default=4,
        metavar="N",
        help="rounds; their first quartile counts (4)",
    )
    add("--samples", type=Path, metavar="FILE", help="write every time there, JSON lines")
    add("--log-directory", type=Path, metavar="DIR", help="keep the server's log there")
    add("flags", nargs="*", help="further server flags, after a bare --")


def run(options: argparse.Namespace) -> int:
    """Measure, fit, write, report; exit status 2: a flag is wrong; 1: the measurement failed."""
    sizes = sorted(set(options.sp_sizes))
    try:
        path = check_all(options, sizes)
    except ProfileError as error:
        return _failed(str(error), 2)
    try:
        with kept_on_failure("sglang-cdsp-profile") as scratch:
            found, info = _serve_and_measure(options, path, sizes, scratch)
        model, reports = fit_model(
            typical(found),
            model=Path(options.model_path).name,
            device=str(info.get("device") or "unknown"),
            tp_size=int(info.get("tp_size") or 1),
            expands=model_expands(options.model_path),
        )
    except (ProfileError, ServerFailedError, LatencyModelError, requests.RequestException) as error:
        return _failed(str(error), 1)
    model = dataclasses.replace(model, fit={**model.fit, **_measured(options, found)})
    print(format_errors(reports))
    print(f"half of all single runs lie within {noise(found):.1%} of what was fitted")
    print(_range(found, options.max_tokens))
    return _write(options, model, found)


def _failed(message: str, status: int) -> int:
    print(f"python -m sglang_cdsp profile: {message}", file=sys.stderr)
    return status


def _measured(
    options: argparse.Namespace, found: Mapping[Point, Sequence[float]]
) -> dict[str, Any]:
    """What was measured, for the model file's `fit`."""
    return {
        "repeats": options.repeats,
        MEASURED_KEY: options.max_tokens,
        "chunk_tokens": [min(p.tokens for p in found), max(p.tokens for p in found)],
        "history_tokens": [0, max(p.history for p in found)],
        "noise": noise(found),
    }


def _range(found: Mapping[Point, object], longest: int) -> str:
    least, most = min(p.tokens for p in found), max(p.tokens for p in found)
    history = max(p.history for p in found)
    return (
        f"measured: chunks of {least} to {most} tokens after up to {history}, prompts of up to "
        f"{longest}; times of longer prompts are extrapolated (--max-tokens)"
    )


def _write(
    options: argparse.Namespace, model: LatencyModel, found: Mapping[Point, Sequence[float]]
) -> int:
    """Writes model and samples. What cannot be written goes to stdout: it took minutes."""
    lines = [json.dumps({**dataclasses.asdict(p), "seconds": s}) for p, s in found.items()]
    texts = [("--out", options.out, json.dumps(model.to_json(), indent=2) + "\n")]
    if options.samples:
        texts.append(("--samples", options.samples, "\n".join(lines) + "\n"))
    status = 0
    for flag, path, text in texts:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            print(text, end="")
            status = _failed(f"{unwritable(path, flag, error)}; it stands above instead", 1)
    if not status:
        print(f"latency model of {model.model} on {model.device} written to {options.out}")
    return status


def _serve_and_measure(
    options: argparse.Namespace, model: Path | str, sizes: Sequence[int], scratch: Path
) -> tuple[dict[Point, list[float]], dict[str, Any]]:
    """Starts the server, measures, ends it. `scratch`: where plan log and server log go."""
    instances = max(2, sizes[-1])
    plan_log, stand_in = scratch / "plans.jsonl", scratch / "stand-in.json"
    builtin_model().save(stand_in)  # plans are forced; the server need not measure itself
    flags = (
        *("--cdsp", "--dp-size", str(instances), "--cdsp-allow-request-plans"),
        *("--cdsp-plan-log", str(plan_log), "--cdsp-latency-model", str(stand_in)),
        *options.flags,
    )
    with running(
        prefill_only(model, flags=flags),
        options.log_directory or scratch / "logs",
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    ) as stack:
        info = requests.get(f"{stack.url}/server_info", timeout=30).json()
        plans = chains(sizes, options.max_tokens, options.steps)
        return measure(stack.url, plan_log, plans, options.repeats, instances), info
