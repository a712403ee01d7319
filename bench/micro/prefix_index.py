"""What the prefix index costs the controller: lookups, events, plans and memory.

    python -m bench.micro.prefix_index [--instances 128] [--pages 1000000] [--page-size 64]
        [--prompt 32768] [--rounds 2000]

Instances hold prompts that share prefixes: a system prompt that all have, documents that some have,
conversations that one has. Times are the process's own on its core, so that what else runs on the
machine counts little; pages of the prompts that are looked up are hashed beforehand, and that is
timed apart. *Plan* is a whole plan of `cdsp-late` for an arriving prompt, with and without
prefixes, on a pool with random queues.
"""

from __future__ import annotations

import random
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, builtin_model, make_policy
from sglang_cdsp.planner.prefixes.index import PrefixIndex
from sglang_cdsp.planner.types import HeldPrefix

SYSTEM, SHARED_BY = 8, 8
"""Pages of the system prompt; instances that have a document."""


def timed(what: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call computes."""
    start = time.thread_time()
    what(*arguments)
    return time.thread_time() - start


def shown(name: str, seconds: list[float]) -> str:
    """Median, 99th percentile and longest, in microseconds."""
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"{name:28} P50 {p50 * 1e6:8.1f}  P99 {p99 * 1e6:8.1f}  max {ordered[-1] * 1e6:9.1f} us"


def hash_all(tokens: Sequence[int], page_size: int) -> None:
    """Name all pages of a prompt."""
    pages = PageHashes(tokens, page_size)
    pages[len(pages) - 1]


class Prompts:
    """Page names of prompts that share prefixes."""

    def __init__(self, rng: random.Random, pages: int) -> None:
        self._rng, self._pages = rng, pages
        self.system = self._names(SYSTEM)

    def _names(self, count: int) -> list[int]:
        return [self._rng.getrandbits(63) for _ in range(count)]

    def document(self) -> list[int]:
        """A document behind the system prompt."""
        return [*self.system, *self._names(self._pages - SYSTEM)]

    def asked(self, document: list[int], new: int = 4) -> list[int]:
        """A question about a document."""
        return [*document, *self._names(new)]


def fill(index: PrefixIndex, prompts: Prompts, rng: random.Random, pages: int) -> list[list[int]]:
    """Let instances hold so many pages in all, different or not; returns the documents."""
    instances, documents, held = index.instances, [], 0
    for instance in range(instances):
        index.stored(instance, prompts.system)
        held += SYSTEM
    while held < pages:
        document = prompts.document()
        for instance in rng.sample(range(instances), min(SHARED_BY, instances)):
            some = document[: rng.randint(SYSTEM, len(document))]
            index.stored(instance, some)
            held += len(some) - SYSTEM
        documents.append(document)
    return documents


def plans(instances: int, prompt: int, rounds: int, rng: random.Random) -> tuple[list[float], ...]:
    """Seconds of a plan for an arriving prompt without prefixes, and with the index's answers."""
    sizes = tuple(2**k for k in range(5) if 2**k <= instances)
    base = PolicyOptions(builtin_model(), sizes, page_size=1, improvement_rate=0.1)
    found: list[list[float]] = []
    for reuse in (False, True):
        held: dict[str, tuple[HeldPrefix, ...]] = {}
        source = (lambda rid, held=held: held[rid]) if reuse else None
        policy = make_policy("cdsp-late", replace(base, prefixes=source))
        seconds = []
        draw = random.Random(1)
        for number in range(rounds):
            rid = str(number)
            queue = tuple(draw.choice((0.0, draw.uniform(0, 3))) for _ in range(instances))
            pool = PoolView(queue, None, 8)
            holders = draw.sample(range(instances), min(SHARED_BY, instances))
            held[rid] = tuple(HeldPrefix(i, draw.randint(64, prompt - 1)) for i in holders)[:4]
            view = PromptView(rid, prompt)
            seconds.append(timed(policy.plan, view, pool))
        found.append(seconds)
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = OneLineParser(prog="python -m bench.micro.prefix_index", description=__doc__)
    parser.add_argument("--instances", type=integer(1, 4096), default=128)
    parser.add_argument("--pages", type=integer(1000, 100_000_000), default=1_000_000)
    parser.add_argument("--page-size", type=integer(1, 4096), default=64)
    parser.add_argument("--prompt", type=integer(1000, 10_000_000), default=32_768, help="tokens")
    parser.add_argument("--rounds", type=integer(100, 1_000_000), default=2000)
    options = parser.parse_args(arguments)
    rng = random.Random(0)
    per_prompt = max(options.prompt // options.page_size, SYSTEM + 1)
    prompts = Prompts(rng, per_prompt)
    index = PrefixIndex([options.pages] * options.instances)
    documents = fill(index, prompts, rng, options.pages)
    print(
        f"{options.instances} instances hold {sum(index.counts)} pages, {len(index)} different; "
        f"prompts of {options.prompt} tokens, pages of {options.page_size}"
    )
    print(f"memory of the index: {index.bytes() / 1e6:.0f} MB")
    tokens = array("q", [rng.randrange(100_000) for _ in range(options.prompt)])
    hashing = [timed(hash_all, tokens, options.page_size) for _ in range(20)]
    print(shown("hash all pages of a prompt", hashing))
    hits = [prompts.asked(rng.choice(documents)) for _ in range(options.rounds)]
    print(shown("lookup, a document", [timed(index.lookup, p) for p in hits]))
    misses = [prompts.asked(prompts.document()) for _ in range(options.rounds // 10)]
    print(shown("lookup, the system prompt", [timed(index.lookup, p) for p in misses]))
    event = [prompts.document()[SYSTEM:] for _ in range(options.rounds // 10)]
    pages = len(event[0])
    add = [timed(index.stored, n % options.instances, p) for n, p in enumerate(event)]
    gone = [timed(index.removed, n % options.instances, p) for n, p in enumerate(event)]
    print(shown(f"event, {pages} pages stored", add))
    print(shown(f"event, {pages} pages removed", gone))
    print(shown("an instance is flushed", [timed(index.emptied, 0)]))
    print(shown("scrub, a call", [timed(index.scrub) for _ in range(200)]))
    without, with_prefixes = plans(options.instances, options.prompt, options.rounds, rng)
    print(shown("plan without prefixes", without))
    print(shown("plan with 4 prefixes", with_prefixes))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
