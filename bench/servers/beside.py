"""Decode beside chunks: gaps between tokens of running requests while long prompts prefill.

Two instances of one core each, a model of 16 layers, five running requests on each. Long prompts
come one after the other: on this package's server at SP 2, at several decode shares; on stock's
replicas in turn, at several chunk sizes, with mixed chunk and without it (then with one decode step
after each chunk, `--prefill-decode-interval 1`: by default decode waits for the whole prompt). Each
server runs alone, one after the other. On the torch-only CPU both compute attention the repaired
way (`platforms/torch_attention.py`).

A gap counts if it lies beside a prompt: it ends after the prompt was sent and begins before its
first token came, on an instance that computes the prompt. TPOT of a running request is the mean of
its gaps beside one prompt.

    python -m bench.servers.beside [--tokens 8000] [--prompts 2] [--shares 0.1,0.2,0.33]
        [--chunks 256,512,1024,2048] [--only-mixed] [--out FILE.json]

A start takes a minute or so, a prompt 10 s or so; about 12 minutes with the defaults.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import requests

from bench.servers.ab import CORES, say
from bench.servers.flags import check
from bench.servers.interleave import LAYERS
from sglang_cdsp.cli.parser import OneLineParser, integer, positive_integers, positive_numbers
from sglang_cdsp.testing.checkpoint import LlamaShape, write_checkpoint
from sglang_cdsp.testing.first_token import prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import Deployment, one_server, running, single

EACH = 5
"""Running requests of an instance."""

RUNNING_TOKENS = 200
LONGEST_OUTPUT = 3000
CONTEXT = 20_000
SETTLED = 20
"""Tokens that every running request has before the first prompt comes."""


@dataclass
class Stream:
    """A running request: on which instance, and when each of its tokens came, monotonic."""

    instance: int
    at_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Beside:
    """What one prompt did. gaps_s: of all running requests beside it, shape (n,)."""

    ttft_s: float
    gaps_s: np.ndarray
    tpots_s: np.ndarray

    @classmethod
    def of(cls, start_s: float, end_s: float, streams: Sequence[Stream]) -> Beside:
        """From the streams on the instances that computed it."""
        each = [beside(np.array(stream.at_s), start_s, end_s) for stream in streams]
        tpots = np.array([gaps.mean() for gaps in each if len(gaps)])
        return cls(end_s - start_s, np.concatenate(each), tpots)

    def to_dict(self) -> dict[str, Any]:
        """In JSON types, seconds."""
        return {
            "ttft_s": self.ttft_s,
            "gaps_s": [round(gap, 4) for gap in self.gaps_s.tolist()],
            "tpots_s": [round(tpot, 4) for tpot in self.tpots_s.tolist()],
        }


def beside(at_s: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """The gaps of tokens that came at ``at_s``, shape (m,), that overlap [start_s, end_s].

    A gap that nothing ended yet is left out.
    """
    counts = (at_s[1:] > start_s) & (at_s[:-1] < end_s)
    return np.diff(at_s)[counts]


class Runner:
    """Running requests on one server, and prompts beside them."""

    def __init__(self, url: str, *, pool: bool) -> None:
        """``pool``: plans are forced, where stock is told a replica."""
        self._url, self._pool = url, pool
        self._streams = [Stream(i) for i in range(len(CORES)) for _ in range(EACH)]
        self._ending = threading.Event()
        self._failed: list[str] = []

    def run(self, tokens: int, prompts: int) -> list[Beside]:
        """So many prompts, one after the other, beside the running requests.

        Raises:
            RuntimeError: a running request ended or failed meanwhile.
        """
        threads = [
            threading.Thread(target=self._stream, args=(number, stream), daemon=True)
            for number, stream in enumerate(self._streams)
        ]
        for thread in threads:
            thread.start()
        try:
            self._await(SETTLED)
            found = []
            for number in range(prompts):
                group = [*range(len(CORES))] if self._pool else [number % len(CORES)]
                start_s = time.monotonic()
                self._prompt(900 + number, tokens, group)
                end_s = time.monotonic()
                # The gap that the prompt's end lies in is to end, and decode to settle.
                self._await(2 + max(len(stream.at_s) for stream in self._streams))
                here = [stream for stream in self._streams if stream.instance in group]
                found.append(Beside.of(start_s, end_s, here))
                self._await(SETTLED + max(len(stream.at_s) for stream in self._streams))
        finally:
            self._ending.set()
            requests.post(f"{self._url}/abort_request", json={"abort_all": True}, timeout=60)
            for thread in threads:
                thread.join(60)
        return found

    def _await(self, tokens: int) -> None:
        """Wait until every running request has so many tokens."""
        while min(len(stream.at_s) for stream in self._streams) < tokens:
            if self._failed:
                raise RuntimeError(f"a running request ended: {self._failed[0]}")
            time.sleep(0.02)

    def _placed(self, body: dict[str, Any], tokens: int, group: Sequence[int]) -> dict[str, Any]:
        if not self._pool:
            return {**body, "routed_dp_rank": group[0]}
        sampling = {**body["sampling_params"], "custom_params": {"cdsp_plan": [[tokens, group]]}}
        return {**body, "sampling_params": sampling}

    def _prompt(self, seed: int, tokens: int, group: Sequence[int]) -> None:
        sampling = {"max_new_tokens": 1, "temperature": 0}
        body = {"input_ids": prompt_tokens(seed, tokens), "sampling_params": sampling}
        placed = self._placed(body, tokens, group)
        requests.post(f"{self._url}/generate", json=placed, timeout=600).raise_for_status()

    def _stream(self, number: int, stream: Stream) -> None:
        sampling = {"max_new_tokens": LONGEST_OUTPUT, "temperature": 0, "ignore_eos": True}
        body = {
            "input_ids": prompt_tokens(number, RUNNING_TOKENS),
            "sampling_params": sampling,
            "stream": True,
        }
        placed = self._placed(body, RUNNING_TOKENS, [stream.instance])
        try:
            with requests.post(
                f"{self._url}/generate", json=placed, stream=True, timeout=600
            ) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    now_s = time.monotonic()
                    if line.startswith(b"data: {"):
                        # Several tokens may come in one event: they came together.
                        said = json.loads(line[len(b"data: ") :])
                        new = said["meta_info"]["completion_tokens"] - len(stream.at_s)
                        stream.at_s += [now_s] * new
        except (requests.RequestException, KeyError, ValueError) as error:
            self._failed.append(repr(error))
        if not self._ending.is_set():
            self._failed.append(f"it has {len(stream.at_s)} tokens")


@dataclass(frozen=True)
class Way:
    """A server to measure."""

    name: str
    pool: bool
    flags: tuple[str, ...]

    def plan(self, checkpoint: Path) -> Deployment:
        """The server."""
        common = ("--dp-size", str(len(CORES)), "--max-total-tokens", "40000")
        flags = (*common, "--context-length", str(CONTEXT), *self.flags)
        make = one_server if self.pool else single
        return make(checkpoint, flags=flags, cores="|".join(CORES))


def ways(
    shares: Sequence[float],
    chunks: Sequence[int],
    pool_flags: Sequence[str] = (),
    *,
    only_mixed: bool,
) -> list[Way]:
    """The servers, this package's first."""
    forced = ("--cdsp-allow-request-plans", *pool_flags)
    found = [
        Way(f"share {share:g}", True, (*forced, "--cdsp-decode-share", f"{share:g}"))
        for share in shares
    ]
    for tokens in chunks:
        size = ("--chunked-prefill-size", str(tokens))
        found.append(Way(f"stock {tokens}, mixed", False, (*size, "--enable-mixed-chunk")))
        if not only_mixed:
            interval = ("--prefill-decode-interval", "1")
            found.append(Way(f"stock {tokens}", False, (*size, *interval)))
    return found


def figures(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of one server's prompts: mean TTFT, gaps and TPOT, seconds."""
    gaps = np.concatenate([run["gaps_s"] for run in runs])
    tpots = np.concatenate([run["tpots_s"] for run in runs])
    return {
        "ttft": float(np.mean([run["ttft_s"] for run in runs])),
        "gap P50": float(np.percentile(gaps, 50)),
        "gap P99": float(np.percentile(gaps, 99)),
        "gap max": float(gaps.max()),
        "TPOT mean": float(tpots.mean()),
        "TPOT max": float(tpots.max()),
    }


def table(runs: dict[str, list[dict[str, Any]]], pools: Sequence[str]) -> str:
    """Every server's figures as Markdown, and this package's over stock's with the smallest gap."""
    found = {name: figures(mine) for name, mine in runs.items()}
    names = next(iter(found.values()))
    lines = ["| | " + " | ".join(f"{n}, s" for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{value:.3f}" for value in mine.values()) + " |"
        for name, mine in found.items()
    ]
    stock = {name: mine for name, mine in found.items() if name not in pools}
    if stock:
        base = min(stock, key=lambda name: stock[name]["gap P99"])
        lines += ["", f"Over {base}, stock's with the smallest gap P99 (aims: 1.1, 1.1, 0.6):", ""]
        for name in pools:
            ratios = {n: found[name][n] / stock[base][n] for n in names}
            lines.append(
                f"- {name}: gap P99 {ratios['gap P99']:.2f}, largest TPOT "
                f"{ratios['TPOT max']:.2f}, TTFT {ratios['ttft']:.2f}; mean TPOT "
                f"{ratios['TPOT mean']:.2f}"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the servers one after the other and print the table."""
    parser = OneLineParser(prog="python -m bench.servers.beside", description=__doc__)
    add = parser.add_argument
    add("--tokens", type=integer(1000, CONTEXT - 1000), default=8000, help="of a long prompt")
    add("--prompts", type=integer(1), default=2, help="on each server")
    add("--shares", type=positive_numbers, default=(0.1, 0.2, 0.33), help="decode shares")
    add("--chunks", type=positive_integers, default=(256, 512, 1024, 2048), help="stock's sizes")
    add("--latency-model", type=Path, help="of `profile`; else each pool measures itself")
    add("--only-mixed", action="store_true", help="leave out stock without mixed chunk")
    add("--out", type=Path, metavar="FILE", help="every gap, JSON")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    model = options.latency_model
    known = ("--cdsp-latency-model", str(model.resolve())) if model else ()
    chosen = ways(options.shares, options.chunks, known, only_mixed=options.only_mixed)
    runs: dict[str, list[dict[str, Any]]] = {}
    with kept_on_failure("bench-beside") as scratch:
        shape = LlamaShape(num_hidden_layers=LAYERS)
        checkpoint = write_checkpoint(scratch / "checkpoint", shape=shape)
        for number, way in enumerate(chosen):
            with running(way.plan(checkpoint), scratch / f"logs-{number}") as stack:
                found = Runner(stack.url, pool=way.pool).run(options.tokens, options.prompts)
            runs[way.name] = [one.to_dict() for one in found]
            say(f"{way.name}: {figures(runs[way.name])}")
            if options.out:
                said = {"tokens": options.tokens, "prompts": options.prompts, "runs": runs}
                options.out.write_text(json.dumps(said, indent=2) + "\n")
    print(table(runs, [way.name for way in chosen if way.pool]))


if __name__ == "__main__":
    main()
