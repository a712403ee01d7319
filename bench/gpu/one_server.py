"""Step 8: one server that prefills and decodes, as users start it, beside a stock one.

SGLang's overlap scheduler, its graphs for decode and its radix cache stay on. Answers are stock's
for every way that a prompt can take, also while a chunk runs beside decode; how long a token takes
is told beside stock.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

from bench.gpu.plans import PAGE, cases
from bench.gpu.record import CheckFailed, Recorder
from bench.gpu.serving import (
    LATENCY_MODEL,
    ON_CUDA,
    Reference,
    Servers,
    Sizes,
    other_prompt_shows,
    pool_answers,
    reference_of,
    with_servers,
)
from bench.gpu.target import Target
from sglang_cdsp.testing.answers import TOP, Answer, compare
from sglang_cdsp.testing.prompts import cut_ids
from sglang_cdsp.testing.stack import (
    Deployment,
    one_server,
    single,
    together,
)

NEW_TOKENS = 32
"""Enough for decode to show itself."""
DECODED = 96
"""Tokens of the requests that decode alone, or beside a chunk."""
KEPT_ON = ("disable_overlap_schedule", "disable_cuda_graph", "disable_radix_cache")
"""Settings of SGLang's that nothing may have set on a GPU."""


@dataclass(frozen=True)
class Stream:
    """A streamed answer.

    Attributes:
        answer: as a whole.
        times_s: when each event came, on one clock.
    """

    answer: Answer
    times_s: tuple[float, ...]

    @property
    def token_ms(self) -> float:
        """Mean time between tokens, milliseconds."""
        spans = len(self.answer.tokens) - 1
        return 1e3 * (self.times_s[-1] - self.times_s[0]) / spans

    @property
    def longest_ms(self) -> float:
        """The longest time between two events, milliseconds."""
        pairs = zip(self.times_s, self.times_s[1:], strict=False)
        return 1e3 * max(later - earlier for earlier, later in pairs)


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""

    def checks(recorder: Recorder, servers: Servers, checkpoint: Path) -> None:
        recorder.check("overlap, graphs and radix cache", partial(kept_on, servers, target))
        for length in servers.lengths:
            check_length(recorder, servers, checkpoint, length)
        prompts = [
            cut_ids(checkpoint, PAGE * 4 + 3, seed=8),
            cut_ids(checkpoint, servers.lengths[-1], seed=9),
        ]
        recorder.check("tokens one by one", partial(token_times, servers, prompts[0]))
        recorder.check("chunks beside decode", partial(beside, servers, *prompts))

    with_servers(target, recorder, deployment, "one-server", "pool", checks)


def deployment(checkpoint: Path, sizes: Sizes, cuda: bool) -> Deployment:
    """A pool of two in one server, and a stock server."""
    both = ("--page-size", str(PAGE), "--context-length", str(sizes.context))
    both = (*both, *(ON_CUDA if cuda else ("--max-total-tokens", "16384")))
    pool = (
        *("--dp-size", "2", "--cdsp-allow-request-plans"),
        *("--cdsp-latency-model", str(LATENCY_MODEL)),
    )
    return together(one_server(checkpoint, flags=(*both, *pool)), single(checkpoint, flags=both))


def kept_on(servers: Servers, target: Target) -> dict[str, Any]:
    """Check that the pool runs with what stock SGLang runs with.

    Raises:
        CheckFailed: something is off; on a CPU SGLang itself switches some of it off.
    """
    found = {name: settings(servers.url(name)) for name in ("pool", "single")}
    if found["pool"] != found["single"]:
        raise CheckFailed(f"the pool has {found['pool']}, stock {found['single']}")
    off = [name for name, value in found["pool"].items() if value]
    if target.cuda and off:
        raise CheckFailed(f"{', '.join(off)} set")
    return dict(found["pool"])


def settings(url: str) -> dict[str, Any]:
    """Those of ``KEPT_ON`` that this release has."""
    info = requests.get(f"{url}/server_info", timeout=30).json()
    return {name: info[name] for name in KEPT_ON if name in info}


def check_length(recorder: Recorder, servers: Servers, checkpoint: Path, length: int) -> None:
    """All checks of prompts of one length."""
    prompt = cut_ids(checkpoint, length, seed=length)
    found: list[Reference] = []

    def stock() -> dict[str, Any]:
        reference, figures = reference_of(servers, prompt, NEW_TOKENS)
        found.append(reference)
        return figures

    if not recorder.check(f"{length} tokens, stock", stock):
        return
    (reference,) = found
    recorder.check(
        f"{length} tokens, another prompt shows",
        lambda: other_prompt_shows(servers, checkpoint, prompt, reference),
    )
    plans = [(case.name, case.plan) for case in cases(length, servers.shape)]
    # The prompt is cached by then: the pool's own plan may use that.
    for name, plan in [*plans, ("the pool's own plan", None)]:
        recorder.check(
            f"{length} tokens, {name}",
            partial(pool_answers, servers, prompt, plan, reference, "pool"),
        )


def streamed(
    servers: Servers, server: str, prompt: Sequence[int], begun: threading.Event | None = None
) -> Stream:
    """Greedy answer of ``DECODED`` tokens; ``begun`` is set with the first.

    Raises:
        CheckFailed: the server refuses; with its words.
    """
    body: dict[str, Any] = {
        "input_ids": list(prompt),
        "sampling_params": {"temperature": 0, "ignore_eos": True, "max_new_tokens": DECODED},
        "return_logprob": True,
        "top_logprobs_num": TOP,
        "stream": True,
    }
    times_s, last = [], None
    url = f"{servers.url(server)}/generate"
    with requests.post(url, json=body, stream=True, timeout=servers.limit_s) as response:
        if response.status_code != 200:
            raise CheckFailed(f"{server} answers {response.status_code}: {response.text[:500]}")
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                last = json.loads(line.removeprefix(b"data: "))
                times_s.append(time.monotonic())
                if begun is not None:
                    begun.set()
    if last is None or len(times_s) < 2:
        raise CheckFailed(f"{server} streamed {len(times_s)} events")
    return Stream(Answer.of(last), tuple(times_s))


def token_times(servers: Servers, prompt: Sequence[int]) -> dict[str, Any]:
    """How long a token takes with nothing beside it, pool and stock in turn."""
    found: dict[str, list[float]] = {"pool": [], "single": []}
    for _ in range(3):
        for server, times in found.items():
            times.append(streamed(servers, server, prompt).token_ms)
    pool, stock = (statistics.median(times) for times in found.values())
    return {"pool ms": pool, "stock ms": stock, "of stock's": pool / stock}


def beside(servers: Servers, short: Sequence[int], long: Sequence[int]) -> dict[str, Any]:
    """A prompt on both instances while another request decodes on one; both answers are stock's.

    Raises:
        CheckFailed: the two did not overlap, so nothing was seen.
    """
    reference, _ = reference_of(servers, long, NEW_TOKENS)
    expected = streamed(servers, "single", short)
    begun, found = threading.Event(), list[Stream]()
    reader = threading.Thread(
        target=lambda: found.append(streamed(servers, "pool", short, begun)), daemon=True
    )
    reader.start()
    if not begun.wait(timeout=servers.limit_s):
        raise CheckFailed("the request that is to decode has no first token")
    asked_s = time.monotonic()
    plan = [(len(long), [0, 1])]
    prefilled = pool_answers(servers, long, plan, reference, "pool")
    reader.join(timeout=servers.limit_s)
    if not found:
        raise CheckFailed("the request that decodes did not end")
    if found[0].times_s[-1] < asked_s:
        raise CheckFailed("it had ended before the prompt was asked")
    compare(expected.answer, found[0].answer, reference.tolerance)
    return {
        "answer s": prefilled["answer s"],
        "token ms": found[0].token_ms,
        "longest ms": found[0].longest_ms,
        "stock alone ms": expected.token_ms,
    }
