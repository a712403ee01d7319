"""Cached prefixes on real servers: second turns, questions that come together, and no reuse at all.

Two instances of one core each, each server alone and one after the other: this package's, the same
with `--disable-radix-cache`, and stock SGLang with `--dp-size 2`. On the torch-only CPU all compute
attention the repaired way (`platforms/torch_attention.py`).

- A second turn: a conversation of 16,000 tokens is answered, then goes on; TTFT of the next turn.
  Stock gets both turns on one instance (`routed_dp_rank`): its hit.
- Ten questions at once about a document of 12,000 tokens that nobody has seen: the time until the
  last of them has its first token.
- A mix whose prompts have nothing in common, sent one after the other in a drawn rhythm: mean TTFT,
  with the cache on and off, in turns.

    python -m bench.servers.prefix [--turn-tokens 16000] [--document-tokens 12000] [--repeats 3]
        [--mix-turns 10] [--latency-model FILE] [--out FILE.json]

A start takes a minute or so, a prompt some 15 s; about 20 minutes with the defaults.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests

from bench.servers.ab import CORES, say
from bench.servers.flags import check
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.first_token import prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import Deployment, one_server, running, single

CONTEXT = 20_000
SLOTS = 40_000
ASKED, TURN, ANSWER = 10, 200, 16
"""Questions at once; new tokens of a turn or question; tokens of an answer."""

MIX = (300, 4500, 900, 2500, 600, 6000, 1500, 400)
MIX_RATE = 0.4
"""Prompts of the mix, and how many a second."""


@dataclass(frozen=True)
class Way:
    """A server to measure."""

    name: str
    pool: bool
    flags: tuple[str, ...] = ()

    def plan(self, checkpoint: Path) -> Deployment:
        """The server."""
        common = ("--dp-size", str(len(CORES)), "--max-total-tokens", str(SLOTS))
        flags = (*common, "--context-length", str(CONTEXT), *self.flags)
        make = one_server if self.pool else single
        return make(checkpoint, flags=flags, cores="|".join(CORES))


POOL, OFF = Way("pool", True), Way("pool, cache off", True, ("--disable-radix-cache",))
STOCK = Way("stock", False)


class Runner:
    """Requests to one server."""

    def __init__(self, url: str, way: Way) -> None:
        self._url, self._way = url, way

    def first_token(
        self, tokens: Sequence[int], output: int, *, hit: bool = False
    ) -> tuple[float, list[int], int]:
        """Seconds to the first token, the answer, and how many tokens were cached.

        hit: stock is to take the instance that had the conversation before.
        """
        body: dict[str, Any] = {
            "input_ids": list(tokens),
            "sampling_params": {"temperature": 0, "max_new_tokens": output, "ignore_eos": True},
            "stream": True,
        }
        if hit and not self._way.pool:
            body["routed_dp_rank"] = 0
        start, first = time.monotonic(), 0.0
        last: dict[str, Any] = {}
        with requests.post(f"{self._url}/generate", json=body, stream=True, timeout=600) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines(chunk_size=1):
                if not line.startswith(b"data: {"):
                    continue
                first = first or time.monotonic() - start
                last = json.loads(line[len(b"data: ") :])
        return first, list(last["output_ids"]), int(last["meta_info"]["cached_tokens"])

    def second_turn(self, tokens: int, seed: int) -> dict[str, float]:
        """A conversation of so many tokens goes on."""
        prompt = prompt_tokens(seed, tokens - ANSWER)
        cold_s, said, _ = self.first_token(prompt, ANSWER, hit=True)
        again = [*prompt, *said, *prompt_tokens(seed + 1, TURN)]
        warm_s, _, cached = self.first_token(again, ANSWER, hit=True)
        return {"cold_s": cold_s, "warm_s": warm_s, "cached": float(cached)}

    def questions(self, tokens: int, seed: int) -> float:
        """Seconds until all questions about a new document have their first token."""
        document = prompt_tokens(seed, tokens)
        asked = [[*document, *prompt_tokens(seed + 1 + n, TURN)] for n in range(ASKED)]
        with ThreadPoolExecutor(ASKED) as threads:
            found = list(threads.map(lambda prompt: self.first_token(prompt, ANSWER)[0], asked))
        return max(found)

    def mix(self, turn: int) -> float:
        """Mean TTFT of prompts that have nothing in common."""
        rng = random.Random(turn)
        found: list[float] = []
        lock = threading.Lock()

        def one(number: int, tokens: int) -> None:
            # Seeds of one turn and of another give other prompts from the first token on.
            seconds = self.first_token(prompt_tokens(100 * turn + number, tokens), 2)[0]
            with lock:
                found.append(seconds)

        threads = []
        for number, tokens in enumerate(rng.sample(MIX, len(MIX))):
            threads.append(threading.Thread(target=one, args=(number, tokens)))
            threads[-1].start()
            time.sleep(rng.expovariate(MIX_RATE))
        for thread in threads:
            thread.join()
        return float(np.mean(found))


def measure(options: Any, way: Way, checkpoint: Path, logs: Path) -> dict[str, Any]:
    """All runs on one server."""
    with running(way.plan(checkpoint), logs) as stack:
        runner = Runner(stack.url, way)
        runner.first_token(prompt_tokens(999, 3000), 2)  # first use of buffers and links
        found: dict[str, Any] = {"mix_s": [runner.mix(turn) for turn in range(options.mix_turns)]}
        if way.name != OFF.name:
            seeds = [1000 + 100 * n for n in range(options.repeats)]
            found["turns"] = [runner.second_turn(options.turn_tokens, s) for s in seeds]
            found["questions_s"] = [
                runner.questions(options.document_tokens, s + 50) for s in seeds
            ]
    say(f"{way.name}: {found}")
    return found


def shown(found: dict[str, dict[str, Any]]) -> str:
    """The figures, ours over stock's."""
    pool, stock, off = found[POOL.name], found[STOCK.name], found[OFF.name]

    def median(run: dict[str, Any], name: str) -> float:
        return float(np.median([turn[name] for turn in run["turns"]]))

    lines = []
    for name in ("cold_s", "warm_s"):
        mine, theirs = median(pool, name), median(stock, name)
        lines.append(
            f"turn {name:7} pool {mine:7.3f} s, stock {theirs:7.3f} s: {mine / theirs:.2f}"
        )
    lines.append(
        f"cached of it: pool {median(pool, 'cached'):.0f}, stock {median(stock, 'cached'):.0f}"
    )
    mine, theirs = (float(np.median(run["questions_s"])) for run in (pool, stock))
    lines.append(f"{ASKED} questions: pool {mine:.3f} s, stock {theirs:.3f} s: {mine / theirs:.2f}")
    on, without = np.array(pool["mix_s"]), np.array(off["mix_s"])
    lines.append(
        f"mix without reuse: cache on {on.mean():.3f} s (spread {on.std(ddof=1):.3f}), "
        f"off {without.mean():.3f} s (spread {without.std(ddof=1):.3f}): "
        f"{on.mean() / without.mean():.2f}"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the servers one after the other and print the figures."""
    parser = OneLineParser(prog="python -m bench.servers.prefix", description=__doc__)
    add = parser.add_argument
    add("--turn-tokens", type=integer(1000, CONTEXT - 1000), default=16_000)
    add("--document-tokens", type=integer(1000, CONTEXT - 1000), default=12_000)
    add("--repeats", type=integer(1, 100), default=3)
    add("--mix-turns", type=integer(2, 100), default=10)
    add("--latency-model", type=Path, help="of `profile`; else each pool measures itself")
    add("--out", type=Path, metavar="FILE", help="every run, JSON")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    model = options.latency_model
    known = ("--cdsp-latency-model", str(model.resolve())) if model else ()
    found: dict[str, dict[str, Any]] = {}
    with kept_on_failure("bench-prefix") as scratch:
        checkpoint = write_checkpoint(scratch / "checkpoint")
        for number, way in enumerate((POOL, STOCK, OFF)):
            there = Way(way.name, way.pool, (*way.flags, *known)) if way.pool and known else way
            runs = measure(options, there, checkpoint, scratch / f"logs-{number}")
            found[way.name] = runs
            if options.out:
                options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(shown(found))


if __name__ == "__main__":
    main()
