"""TTFT of short prompts that arrive while long ones keep every instance busy.

Two instances of one core each, a model of 16 layers, the prefill server alone. First both kinds of
prompts run on an idle pool, then short ones arrive every so often beside long ones: one on each
instance (SP 1), and one on both (SP 2). With and without a pre-empting budget, in one run.

    python -m bench.servers.interleave [--tokens 8000] [--short 200] [--rounds 3] [--out FILE]
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.servers.flags import check
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.testing.checkpoint import LlamaShape, write_checkpoint
from sglang_cdsp.testing.first_token import Plan, post_prompt, prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import prefill_only, running

LAYERS = 16
MOST_TOKENS = 60_000
BUDGETS = ("0", "0.2")
"""Nobody passes; the default."""


class Seeds:
    """Numbers of prompts, each used once: no prompt is found in a cache."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._last += 1
            return self._last


def timed(url: str, tokens: int, seed: int, plan: Plan | None) -> float:
    """Seconds from sending a prompt to the answer with its first token."""
    ids = prompt_tokens(seed, tokens)
    start = time.perf_counter()
    post_prompt(url, ids, plan=plan).raise_for_status()
    return time.perf_counter() - start


def beside(url: str, long: Sequence[tuple[int, Plan]], short: int, seeds: Seeds) -> dict[str, Any]:
    """Run long prompts, and short ones one after the other until the last long one has ended."""
    longs: list[float] = []
    threads = [
        threading.Thread(
            target=lambda t=tokens, p=plan: longs.append(timed(url, t, seeds.next(), p))
        )
        for tokens, plan in long
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    shorts: list[float] = []
    while any(thread.is_alive() for thread in threads):
        seconds = timed(url, short, seeds.next(), None)
        # One that outlived the long prompts was not beside them.
        if all(thread.is_alive() for thread in threads):
            shorts.append(seconds)
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    return {"long": longs, "short": shorts}


def measure(url: str, tokens: int, short: int, rounds: int) -> dict[str, Any]:
    """All series at one server: idle TTFTs, then both ways of being busy."""
    seeds = Seeds()
    one: Plan = [(tokens, [0])]
    two: Plan = [(tokens, [0, 1])]
    timed(url, tokens, seeds.next(), two)
    found: dict[str, Any] = {
        "idle short": [timed(url, short, seeds.next(), None) for _ in range(10)],
        "idle SP 1": [timed(url, tokens, seeds.next(), one) for _ in range(2)],
        "idle SP 2": [timed(url, tokens, seeds.next(), two) for _ in range(2)],
    }
    found["SP 1"] = [
        beside(url, [(tokens, one), (tokens, [(tokens, [1])])], short, seeds) for _ in range(rounds)
    ]
    found["SP 2"] = [beside(url, [(tokens, two)], short, seeds) for _ in range(rounds)]
    return found


def table(runs: dict[str, dict[str, Any]]) -> str:
    """The series as Markdown: short prompts' TTFT over idle in layers, long ones' over idle."""
    lines = [
        "| budget | long prompts | short, idle | short beside: P50, P99, n | in layers above idle "
        "| long over idle |",
        "|---|---|---|---|---|---|",
    ]
    for budget, found in runs.items():
        idle = statistics.median(found["idle short"])
        for size in ("SP 1", "SP 2"):
            alone = statistics.median(found[f"idle {size}"])
            layer = alone / LAYERS
            shorts = sorted(s for one in found[size] for s in one["short"])
            longs = statistics.median(s for one in found[size] for s in one["long"])
            if not shorts:
                lines.append(f"| {budget} | {size} | {idle:.2f} s | none | | {longs / alone:.2f} |")
                continue
            p50, p99 = (
                statistics.median(shorts),
                shorts[min(len(shorts) - 1, len(shorts) * 99 // 100)],
            )
            above = f"{(p50 - idle) / layer:.1f}, {(p99 - idle) / layer:.1f} of {layer:.2f} s"
            lines.append(
                f"| {budget} | {size} | {idle:.2f} s | {p50:.2f}, {p99:.2f} s, {len(shorts)} "
                f"| {above} | {longs / alone:.2f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the servers one after the other and print the table."""
    parser = OneLineParser(prog="python -m bench.servers.interleave", description=__doc__)
    parser.add_argument("--tokens", type=integer(1000, MOST_TOKENS), default=8000)
    parser.add_argument("--short", type=integer(1, 1000), default=200)
    parser.add_argument("--rounds", type=integer(1), default=3)
    parser.add_argument("--out", type=Path, metavar="FILE", help="every time, JSON")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    runs: dict[str, dict[str, Any]] = {}
    with kept_on_failure("bench-interleave") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint, shape=LlamaShape(num_hidden_layers=LAYERS))
        for budget in BUDGETS:
            flags = ("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans")
            pool = prefill_only(checkpoint, flags=(*flags, "--cdsp-preempt-budget", budget))
            with running(pool, scratch / f"pool-{budget}") as stack:
                runs[budget] = measure(stack.url, options.tokens, options.short, options.rounds)
    print(table(runs))
    if options.out:
        options.out.write_text(
            json.dumps({"tokens": options.tokens, "runs": runs}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
