"""Many conversations with one server, alone and several at a time, against stock SGLang.

    python -m bench.servers.conversations [--count 200] [--at-once 8] [--first-seed 0]
        [--slots 2048] [--documents 150,500,800] [--added 150] [--core rust|python]
        [--within SECONDS] [--out FILE.json]

Turns, branches, shared documents, edits in the middle and tenants' salts (`bench/servers/talks.py`)
on a pool of four instances whose slots hold far less than the conversations leave behind, so that
pages are evicted all the time. Every answer must be stock's. Afterwards trees, index, slots and the
pool's KV events must agree; with `--core python` each page of the trees is looked at. `--within`
begins no more conversations after so many seconds, alone and then several at a time. Exit status 1
if anything is wrong.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from bench.servers.flags import check
from bench.servers.talks import Sizes, draw, hold
from sglang_cdsp.cli.parser import OneLineParser, integer, number, positive_integers
from sglang_cdsp.protocol.cache_digest import CACHES_VAR
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.testing.answers import TOP, Answer
from sglang_cdsp.testing.caches import await_agreement
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.kv_events import EventPorts, Replay
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import RunningStack, one_server, running, single, together

POOL = 4
CONTEXT = 20_000
CORE_VAR = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"


class Clients:
    """Asks the pool and a stock server, whose answers are kept: both phases ask the same."""

    def __init__(self, stack: RunningStack, output: int) -> None:
        self._stack, self._output = stack, output
        self._kept: dict[tuple[int, ...], Answer] = {}
        self._lock = threading.Lock()
        self.asked = 0

    def pool(self, prompt: list[int], fields: dict[str, Any]) -> tuple[Answer, int]:
        """The pool's answer, and how many tokens were cached."""
        answer = self._ask("pool", prompt, fields)
        with self._lock:
            self.asked += 1
        return Answer.of(answer), int(answer["meta_info"]["cached_tokens"])

    def stock(self, prompt: list[int]) -> Answer:
        """The stock server's answer."""
        key = tuple(prompt)
        if key not in self._kept:
            self._kept[key] = Answer.of(self._ask("single", prompt, {}))
        return self._kept[key]

    def _ask(self, name: str, prompt: list[int], fields: dict[str, Any]) -> Any:
        sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": self._output}
        body = {
            "input_ids": prompt,
            "sampling_params": sampling,
            "return_logprob": True,
            "top_logprobs_num": TOP,
            **fields,
        }
        answer = requests.post(f"{self._stack.urls[name]}/generate", json=body, timeout=300)
        if answer.status_code != 200:
            raise AssertionError(f"{len(prompt)} tokens at {name}: {answer.text[:300]}")
        return answer.json()


def phase(
    clients: Clients,
    checkpoint: Path,
    seeds: Sequence[int],
    sizes: Sizes,
    at_once: int,
    within_s: float,
) -> tuple[dict[str, Any], list[str]]:
    """Hold conversations, so many at a time: what there is to tell, and what was wrong.

    ``within_s``: none begins later, in seconds.
    """
    before, start_s = clients.asked, time.monotonic()

    def one(seed: int) -> int | str | None:
        if time.monotonic() > start_s + within_s:
            return None
        try:
            return hold(draw(seed, sizes), clients.pool, clients.stock, checkpoint)
        except (AssertionError, requests.RequestException) as error:
            return str(error)[:500] or repr(error)

    with ThreadPoolExecutor(at_once) as threads:
        found = list(tqdm(threads.map(one, seeds), total=len(seeds), file=sys.stderr))
    told = {
        "at_once": at_once,
        "conversations": sum(cached is not None for cached in found),
        "answers": clients.asked - before,
        "cached_tokens": sum(cached for cached in found if isinstance(cached, int)),
        "seconds": round(time.monotonic() - start_s, 1),
    }
    return told, [text for text in found if isinstance(text, str)]


def flush(url: str) -> None:
    """Empty all caches; waits for what is being freed."""
    requests.post(f"{url}/flush_cache?timeout=30", timeout=60).raise_for_status()


def converse(
    stack: RunningStack, checkpoint: Path, options: Any, sizes: Sizes, replay: Replay
) -> tuple[dict[str, Any], list[str]]:
    """Both phases, the figures and what was wrong."""
    clients, url = Clients(stack, sizes.output), stack.urls["pool"]
    seeds = range(options.first_seed, options.first_seed + options.count)
    phases, wrong = [], []
    for at_once in (1, options.at_once):
        flush(url)
        told, faults = phase(clients, checkpoint, seeds, sizes, at_once, options.within)
        faults += await_agreement(url, replay)
        told["evicting_events"] = replay.subscriber.counts.get("BlockRemoved", 0)
        phases.append(told)
        wrong += faults
        print(json.dumps(told), flush=True)
    status = requests.get(f"{url}/cdsp/status", timeout=60).json()["prefixes"]
    names = ("plans_reusing", "reused_tokens", "cached_tokens", "misses", "lost_events")
    return {"phases": phases, "prefixes": {name: status[name] for name in names}}, wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the servers, hold the conversations, report."""
    parser = OneLineParser(prog="python -m bench.servers.conversations", description=__doc__)
    add = parser.add_argument
    add("--count", type=integer(1, 100_000), default=200)
    add("--at-once", type=integer(1, 256), default=8)
    add("--first-seed", type=integer(0, 1 << 30), default=0)
    add("--slots", type=integer(512, 1 << 24), default=2048, help="KV slots of an instance")
    add("--documents", type=positive_integers, default=(150, 500, 800), help="their lengths")
    add("--added", type=integer(1, 10_000), default=150, help="most tokens that a turn adds")
    add("--within", type=number(1.0, 1e6), default=1e6, metavar="SECONDS", help="of each of both")
    add("--core", choices=("rust", "python"), default="rust", help="of SGLang's prefix trees")
    add("--out", type=Path, metavar="FILE", help="the figures, JSON")
    options = parser.parse_args(arguments)
    sizes = Sizes(tuple(options.documents), options.added)
    if sizes.longest >= options.slots:
        parser.error(f"--slots {options.slots}: a conversation has up to {sizes.longest} tokens")
    check(parser, options, files=("out",))
    live, replayed = free_ports(2)
    ports = EventPorts(live, replayed)
    with kept_on_failure("bench-conversations") as scratch:
        checkpoint = write_checkpoint(scratch / "checkpoint")
        context = ("--context-length", str(CONTEXT))
        size = ("--dp-size", str(POOL), "--max-total-tokens", str(options.slots))
        pool = one_server(
            checkpoint,
            flags=(*context, *size, *ports.flags),
            environment={CACHES_VAR: "1", CORE_VAR: options.core},
        )
        servers = together(pool, single(checkpoint, flags=context))
        with running(servers, scratch / "logs") as stack:
            replay = Replay(ports)
            try:
                figures, wrong = converse(stack, checkpoint, options, sizes, replay)
            finally:
                replay.close()
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        options.out.write_text(json.dumps({"settings": settings, **figures}, indent=2) + "\n")
    for line in wrong:
        print(line)
    print(json.dumps(figures["prefixes"]))
    print("all right" if not wrong else f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
