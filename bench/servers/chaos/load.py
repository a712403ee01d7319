"""The requests of a scenario, drawn by its seed: what is asked, when, and who gives it up."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

from bench.servers.chaos.scenario import MIX, Load
from bench.servers.mix import poisson
from bench.servers.storm_jobs import DISCONNECT_SHARE, Job, Prompt, draw_prompt

SHORT, SHARED, LONG = (1, 2, 17, 130, 400), (400, 900, 2000), (4096, 8000)
"""Tokens of the prompts, by kind of request; a batch has short ones, a grammar too."""

REGEX = "[a-z ]{1600,}"
"""Longer than any answer: all end by their length, as the storm's do."""

LATEST_LEAVE_S = 4.0

TOKENS = 4
"""Of an answer that does not stream."""


@dataclass(frozen=True)
class Timed:
    """A request and when it is sent.

    Attributes:
        at_s: seconds after the load's begin.
        kind: of ``MIX``.
        job: the request; its id is the scenario's alone.
    """

    at_s: float
    kind: str
    job: Job


@dataclass(frozen=True)
class Question:
    """What decides an answer.

    Attributes:
        prompt: token ids.
        asks: sampling parameters, sorted, beside those of every request.
    """

    prompt: Prompt
    asks: tuple[tuple[str, Any], ...]


def requests_of(load: Load, *, instances: int, seed: int, name: str) -> list[Timed]:
    """Draw all requests of a load in the order in which they are sent.

    Args:
        load: how many, of which kinds.
        instances: seats of the pool.
        seed: what draws.
        name: what request ids begin with.
    """
    rng = random.Random(f"load {seed}")
    times = itertools.takewhile(lambda at_s: at_s < load.seconds, poisson(seed, load.rate))
    return [
        Timed(at_s, kind, _job(rng, kind, f"{name}-{seed}-{index:06d}", load, instances))
        for index, (at_s, kind) in enumerate(
            (at_s, rng.choices(MIX, [load.mix.get(kind, 0.0) for kind in MIX])[0]) for at_s in times
        )
    ]


def questions_of(job: Job) -> tuple[Question, ...]:
    """What a request asks, a question a prompt."""
    return tuple(Question(prompt, tuple(sorted(job.asks.items()))) for prompt in job.prompts)


def ids_of(job: Job) -> tuple[str, ...]:
    """The ids under which SGLang knows a request's prompts."""
    if len(job.prompts) == 1:
        return (job.rid,)
    return tuple(f"{job.rid}_{index}" for index in range(len(job.prompts)))


def _job(rng: random.Random, kind: str, rid: str, load: Load, instances: int) -> Job:
    lengths = {"long": LONG, "shared": SHARED}.get(kind, SHORT)
    count = rng.randint(2, 3) if kind == "batch" else 1
    prompts = tuple(draw_prompt(rng, rng.choice(lengths)) for _ in range(count))
    plans = tuple(_plan(rng, len(p), instances) if kind == "shared" else None for p in prompts)
    stream = rng.random() < load.stream
    leave_s = rng.random() ** 2 * LATEST_LEAVE_S if rng.random() < load.abort else None
    asks: dict[str, Any] = {"max_new_tokens": load.streamed_tokens if stream else TOKENS}
    if kind == "grammar":
        asks["regex"] = REGEX
    return Job(
        rid,
        prompts,
        plans,
        stream,
        leave_s=leave_s,
        disconnect=stream and leave_s is not None and rng.random() < DISCONNECT_SHARE,
        asks=asks,
    )


def _plan(rng: random.Random, length: int, instances: int) -> Any:
    """A plan of two chunks on groups that grow, the last one on several instances."""
    order = rng.sample(range(instances), instances)
    last = rng.randint(2, instances)
    first = rng.randint(1, last)
    cut = rng.randint(1, length - 1)
    return [(cut, order[:first]), (length - cut, order[:last])]
