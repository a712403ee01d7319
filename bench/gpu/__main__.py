"""The GPU check: ``python -m bench.gpu [--steps 1,3] [--dry-run] [--out build/gpu.json]``.

Each step runs in a process of its own with a limit of its own; a failed one does not stop the rest.
The exit status is 1 if a step failed. The last line counts the steps that passed, failed and were
skipped. The network is never needed. ``--dry-run`` walks the same steps on the CPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from bench.gpu.ahead import Ahead
from bench.gpu.runner import Outcome, run_step
from bench.gpu.steps import ROOT, StepsError, chosen

RESULTS = ROOT / "bench" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen steps; return the exit status."""
    options = parse(arguments)
    try:
        steps = chosen(options.steps)
        check_out(options.out)
    except StepsError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    folder = options.out.parent / f"{options.out.stem}-steps"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    with Ahead(steps, folder, options.dry_run) as ahead:
        for step in steps:
            limit = step.dry_limit_s if options.dry_run else step.limit_s
            say(f"step {step.number}, {step.title} (at most {limit:g} s)")
            ahead.ready_for(step)
            outcome = run_step(step, folder, options.dry_run, say)
            outcomes.append(outcome)
            so_far = time.monotonic() - started
            say(f"  {outcome.status} after {outcome.seconds:.0f} s, {so_far:.0f} s in all")
            if outcome.reason:
                say(f"  {outcome.reason}")
            # Written after each step: a run that is cut off leaves what it found.
            write(options.out, document(outcomes, options))
    say("")
    say(table(outcomes))
    say(f"written to {options.out}; logs in {folder}")
    say(count(outcomes))
    return int(any(outcome.status == "failed" for outcome in outcomes))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", default="", help="such as 1,3 or 1-5 (default: 1-7)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with small shapes")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    options = parser.parse_args(arguments)
    options.command = ["python", "-m", "bench.gpu", *(arguments or sys.argv[1:])]
    return options


def check_out(out: Path) -> None:
    """Refuse to write over results that are committed.

    Raises:
        StepsError: ``out`` exists among them.
    """
    if out.exists() and RESULTS in out.resolve().parents:
        raise StepsError(f"--out {out} is a committed result: write elsewhere and copy it")


def document(outcomes: Sequence[Outcome], options: argparse.Namespace) -> dict[str, Any]:
    """What is written: the machine, the command, and every step with its checks."""
    machine = next(
        (
            dict(check.figures)
            for outcome in outcomes
            for check in outcome.checks
            if check.name == "device and versions" and check.ok
        ),
        {},
    )
    if not machine:
        machine = described_here(options.dry_run)
    return {
        "command": " ".join(options.command),
        "commit": commit(),
        "dry_run": options.dry_run,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "summary": count(outcomes),
        "steps": [asdict(outcome) for outcome in outcomes],
    }


def described_here(dry_run: bool) -> dict[str, Any]:
    """The machine, where step 1 did not run; in a process of its own, as torch may not load."""
    code = (
        "import json, sys; from bench.gpu.environment import described; "
        "from bench.gpu.target import target_for; "
        f"print('@' + json.dumps(described(target_for({dry_run}))))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        lines = [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]
        return dict(json.loads(lines[-1]))
    except (subprocess.SubprocessError, OSError, IndexError, ValueError) as error:
        return {"unknown": repr(error)}


def commit() -> str:
    """The checkout's commit, "unknown" without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    part.replace(path)


def table(outcomes: Sequence[Outcome]) -> str:
    """One row a step."""
    rows = [f"{'step':34} {'status':8} {'checks':>9} {'seconds':>8}"]
    for outcome in outcomes:
        held = sum(check.ok for check in outcome.checks)
        name = f"{outcome.step.number} {outcome.step.title}"
        checks = f"{held}/{len(outcome.checks)}"
        rows.append(f"{name:34} {outcome.status:8} {checks:>9} {outcome.seconds:8.1f}")
        rows += [f"    FAILED {check.name}" for check in outcome.checks if not check.ok]
        rows += [f"    {outcome.reason}"] if outcome.reason else []
    return "\n".join(rows)


def count(outcomes: Sequence[Outcome]) -> str:
    """The last line."""
    numbers = (
        f"{sum(outcome.status == status for outcome in outcomes)} {status}"
        for status in ("passed", "failed", "skipped")
    )
    return ", ".join(numbers)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def leave(number: int, frame: FrameType | None) -> None:
    """End as an error would, so that every process that was started is ended too."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    sys.exit(main())
