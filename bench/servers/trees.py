"""TTFT by prompt length of this source tree's pool beside another tree's, in one run.

    git worktree add build/before COMMIT
    python -m bench.servers.trees --other build/before [--sizes 200,1000,8000] [--repeats 5]

Two instances of one core each, one chunk on both, the prefill server alone. Both pools are up at
once and asked in turn, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.servers.flags import check
from bench.servers.ttft import ttft
from sglang_cdsp.cli.parser import OneLineParser, integer, positive_integers
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.first_token import Plan
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import Deployment, prefill_only, running, together

SIZES = "200,500,1000,2000,4000,8000,16000,30000"
MOST_TOKENS = 40_000
FLAGS = (
    "--cdsp",
    "--dp-size",
    "2",
    "--cdsp-allow-request-plans",
    "--max-total-tokens",
    str(MOST_TOKENS),
)


def pool_of(name: str, tree: Path, checkpoint: Path) -> Deployment:
    """A pool whose processes import ``sglang_cdsp`` from ``tree``."""
    plan = prefill_only(checkpoint, flags=FLAGS)
    commands = tuple(
        replace(
            command,
            name=name,
            environment={**command.environment, "PYTHONPATH": str(tree.resolve())},
        )
        for command in plan.commands
    )
    return Deployment(commands, plan.url, {name: plan.url}, plan.notes)


def measure(urls: dict[str, str], sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds of both by size; the first round of each size is left out."""
    found = []
    for size in sizes:
        plan: Plan = [(size, [0, 1])]
        times: dict[str, list[float]] = {name: [] for name in urls}
        for repeat in range(repeats + 1):
            for name, url in urls.items():
                seconds = ttft(url, size, 1_000 * size + repeat, plan)
                if repeat:
                    times[name].append(seconds)
        found.append({"tokens": size, "seconds": times})
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The medians and their ratio as Markdown, with the least and largest ratio of one round."""
    lines = ["| tokens | other | this | this over other | of one round |", "|---|---|---|---|---|"]
    for row in found:
        this, other = row["seconds"]["this"], row["seconds"]["other"]
        rounds = [mine / theirs for mine, theirs in zip(this, other, strict=True)]
        a, b = statistics.median(other), statistics.median(this)
        spread = f"{min(rounds):.2f} to {max(rounds):.2f}"
        lines.append(f"| {row['tokens']:,} | {a:.3f} s | {b:.3f} s | {b / a:.2f} | {spread} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both pools and print the table."""
    parser = OneLineParser(prog="python -m bench.servers.trees", description=__doc__)
    parser.add_argument("--other", type=Path, required=True, metavar="TREE")
    parser.add_argument("--sizes", type=positive_integers, default=SIZES)
    parser.add_argument("--repeats", type=integer(1), default=5)
    parser.add_argument("--out", type=Path, metavar="FILE", help="every time, JSON")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    if max(options.sizes) > MOST_TOKENS:
        parser.error(f"--sizes: a prompt may have at most {MOST_TOKENS} tokens")
    if not (options.other / "sglang_cdsp").is_dir():
        parser.error(f"--other: {options.other} has no folder sglang_cdsp")
    here = Path(__file__).resolve().parents[2]
    with kept_on_failure("bench-trees") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint)
        plan = together(
            pool_of("other", options.other, checkpoint), pool_of("this", here, checkpoint)
        )
        with running(plan, scratch / "logs") as stack:
            found = measure(dict(stack.urls), options.sizes, options.repeats)
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
