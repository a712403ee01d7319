"""Step 7: real servers. The pool's answers are stock's, for every way that a prompt can take.

A stock server, a pool of two with decode and router, all on one GPU, with a generated Llama of one
billion parameters. Whether NIXL links two processes on one device is step 5's question, so the
pool's links copy through host memory here. What rounding does is measured on the stock server
itself, which gets each prompt also in two forwards; the pool may be off by a few times that.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

import sglang_cdsp
from bench.gpu.plans import PAGE, cases
from bench.gpu.record import CheckFailed, Recorder
from bench.gpu.target import Target
from sglang_cdsp.parallel.links.choose import LINKS_VAR
from sglang_cdsp.testing.answers import TOP, Answer, compare, gap_at_first_token
from sglang_cdsp.testing.checkpoint import LlamaShape, WeightScale, write_checkpoint
from sglang_cdsp.testing.prompts import cut_ids
from sglang_cdsp.testing.stack import (
    Deployment,
    RunningStack,
    disaggregated,
    running,
    single,
    together,
)

ONE_BILLION = LlamaShape(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
)
SMALL = LlamaShape()
CHECKPOINT = "checkpoint"
"""Its folder beside the step's result."""
# Gains at which bfloat16's rounding moves the log-probabilities of a model this deep by a few
# hundredths, and another first quarter of a prompt by several units.
DEEP_SCALE = WeightScale(query_key=1.2, attention_output=2.0, mlp_output=0.5, logits=2.0)

ON_CUDA = (
    *("--dtype", "bfloat16", "--attention-backend", "triton", "--sampling-backend", "pytorch"),
    *("--max-total-tokens", "65536", "--mem-fraction-static", "0.8"),
)
CUDA_FLAGS = (*ON_CUDA, "--disable-cuda-graph", "--disable-overlap-schedule")
ONE_GPU = {"CDSP_ONE_GPU": "1", "SGLANG_ONE_VISIBLE_DEVICE_PER_PROCESS": "1"}
NIXL = ("--disaggregation-transfer-backend", "nixl")
LATENCY_MODEL = Path(sglang_cdsp.__file__).parent / "planner/models/llama3-8b-a100.json"
"""Spares the pool its calibration: every plan here is forced."""
START_LIMIT_S = 120.0
NEW_TOKENS = 8
FREE_WITHIN_S = 10.0
ROUNDINGS = 4.0
"""How many times stock's own rounding the pool may be off by."""


@dataclass(frozen=True)
class Sizes:
    """What is served.

    Attributes:
        shape, scale, dtype: of the checkpoint.
        lengths: of the prompts, in tokens.
        context: of the servers.
        floor: gap of log-probabilities that is allowed in any case.
        request_s: limit of one request.
    """

    shape: LlamaShape
    scale: WeightScale
    dtype: str
    lengths: tuple[int, ...]
    context: int
    floor: float
    request_s: float


ON_GPU = Sizes(ONE_BILLION, DEEP_SCALE, "bfloat16", (2048, 16_384, 32_768), 40_960, 0.05, 60)
IN_DRY_RUN = Sizes(SMALL, WeightScale(), "float32", (512, 1111), 8192, 1e-3, 120)


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""
    with_servers(target, recorder, deployment, "servers", "prefill", check_lengths)


def check_lengths(recorder: Recorder, servers: Servers, checkpoint: Path) -> None:
    """Prompts of every length."""
    for length in servers.lengths:
        check_length(recorder, servers, checkpoint, length)


def with_servers(
    target: Target,
    recorder: Recorder,
    plan: Callable[[Path, Sizes, bool], Deployment],
    logs: str,
    pool: str,
    checks: Callable[[Recorder, Servers, Path], None],
) -> None:
    """Write the checkpoint, start servers, check, and see that the pool is free again.

    Args:
        plan: the servers for a checkpoint, its sizes, and whether they run on a GPU.
        logs: name of the folder of their logs; a failed check prints their ends.
        pool: name of the server that has the pool.
        checks: what is checked of them.
    """
    sizes = IN_DRY_RUN if target.small else ON_GPU
    checkpoint = recorder.folder / CHECKPOINT
    if not recorder.check("checkpoint", lambda: written(checkpoint, sizes)):
        return
    os.environ[LINKS_VAR] = "shared-memory"
    if target.cuda:
        os.environ.update(ONE_GPU)
    with ExitStack() as ends:
        stacks: list[RunningStack] = []

        def start() -> dict[str, float]:
            limit_s = 4 * START_LIMIT_S if target.small else START_LIMIT_S
            servers = running(
                plan(checkpoint, sizes, target.cuda),
                recorder.folder / logs,
                progress=say,
                timeout_s=limit_s,
            )
            stacks.append(ends.enter_context(servers))
            return {"start s": stacks[0].start_s}

        if not recorder.check("servers start", start):
            return
        servers = Servers(stacks[0], sizes, pool)
        try:
            checks(recorder, servers, checkpoint)
            recorder.check("instances are free again", servers.free)
        finally:
            if not all(check.ok for check in recorder.checks):
                for server in stacks[0].servers.values():
                    say(f"--- {server.log}\n{server.log_tail()}")


def say(line: str) -> None:
    """Into the step's log."""
    print(line, flush=True)


def written(checkpoint: Path, sizes: Sizes) -> dict[str, float]:
    """Write the checkpoint, unless it is there."""
    write_checkpoint(checkpoint, 0, sizes.shape, scale=sizes.scale, dtype=sizes.dtype)
    kept = (checkpoint / "model.safetensors").stat().st_size
    return {"GB": kept / 1e9}


def deployment(checkpoint: Path, sizes: Sizes, cuda: bool) -> Deployment:
    """A stock server beside a pool of two with decode and router."""
    both = ("--page-size", str(PAGE), "--context-length", str(sizes.context))
    both = (*both, *(CUDA_FLAGS if cuda else ("--max-total-tokens", "16384")))
    pool = (
        *("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans"),
        *("--cdsp-latency-model", str(LATENCY_MODEL)),
    )
    return together(
        disaggregated(checkpoint, prefill_flags=pool, flags=(*both, *NIXL)),
        single(checkpoint, flags=both),
    )


class Servers:
    """Requests to the servers."""

    def __init__(self, stack: RunningStack, sizes: Sizes, pool: str) -> None:
        """``pool``: name of the server that has the pool."""
        self._urls, self._sizes, self._pool = stack.urls, sizes, pool
        self.shape, self.floor, self.limit_s = sizes.shape, sizes.floor, sizes.request_s
        self.lengths = sizes.lengths
        self._free = self._free_tokens()

    def url(self, server: str) -> str:
        """Where a server answers."""
        return self._urls[server]

    def ask(
        self, server: str, prompt: Sequence[int], plan: Any = None, new: int = NEW_TOKENS
    ) -> Answer:
        """Greedy answer of a server by name, with a forced plan if one is given.

        Raises:
            CheckFailed: the server refuses; with its words.
        """
        sampling: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_new_tokens": new}
        if plan is not None:
            sampling["custom_params"] = {"cdsp_plan": plan}
        body: dict[str, Any] = {
            "input_ids": list(prompt),
            "sampling_params": sampling,
            "return_logprob": True,
            "top_logprobs_num": TOP,
        }
        url, limit = self._urls[server], self._sizes.request_s
        response = requests.post(f"{url}/generate", json=body, timeout=limit)
        if response.status_code != 200:
            raise CheckFailed(f"{server} answers {response.status_code}: {response.text[:500]}")
        return Answer.of(response.json())

    def forget(self) -> None:
        """Empty the stock server's prefix cache."""
        url = f"{self._urls['single']}/flush_cache"
        requests.post(url, params={"timeout": 10}, timeout=30).raise_for_status()

    def free(self) -> dict[str, Any]:
        """Check that every KV slot of the pool is free again.

        Raises:
            CheckFailed: some are not, ``FREE_WITHIN_S`` after the last answer.
        """
        deadline = time.monotonic() + FREE_WITHIN_S
        while (now := self._free_tokens()) != self._free:
            if time.monotonic() > deadline:
                raise CheckFailed(f"free slots are {now}, at the start they were {self._free}")
            time.sleep(0.2)
        return {"free slots": str(now)}

    def _free_tokens(self) -> list[int]:
        """Slots that nobody holds, those that are cached for whoever comes among them."""
        info = requests.get(f"{self._urls[self._pool]}/server_info", timeout=30).json()
        states = [state["cdsp"] for state in info["internal_states"]]
        return [int(state["free_tokens"]) + int(state.get("cached_tokens", 0)) for state in states]


@dataclass
class Reference:
    """Stock's answer to one prompt, and what the pool's may differ by."""

    answer: Answer
    tolerance: float


def check_length(recorder: Recorder, servers: Servers, checkpoint: Path, length: int) -> None:
    """All checks of prompts of one length."""
    prompt = cut_ids(checkpoint, length, seed=length)
    found: list[Reference] = []

    def stock() -> dict[str, Any]:
        reference, figures = reference_of(servers, prompt)
        found.append(reference)
        return figures

    if not recorder.check(f"{length} tokens, stock", stock):
        return
    (reference,) = found
    recorder.check(
        f"{length} tokens, another prompt shows",
        lambda: other_prompt_shows(servers, checkpoint, prompt, reference),
    )
    for case in cases(length, servers.shape):
        recorder.check(
            f"{length} tokens, {case.name}",
            partial(pool_answers, servers, prompt, case.plan, reference),
        )


def reference_of(
    servers: Servers, prompt: Sequence[int], new: int = NEW_TOKENS
) -> tuple[Reference, dict[str, Any]]:
    """Ask stock for ``new`` tokens, in one forward (or its own chunks) and in two.

    Raises:
        CheckFailed: rounding alone makes another answer of it; nothing can be compared then.
    """
    servers.forget()
    answer = servers.ask("single", prompt, new=new)
    servers.forget()
    half = len(prompt) // 2 // PAGE * PAGE
    servers.ask("single", prompt[:half], new=1)
    rounding = compare(answer, servers.ask("single", prompt, new=new), math.inf).worst
    tolerance = max(servers.floor, ROUNDINGS * rounding)
    if tolerance > 1:
        raise CheckFailed(f"stock differs from itself by {rounding}: the comparison is blind")
    figures = {"rounding": rounding, "tolerance": tolerance, "margin": answer.margin(0)}
    return Reference(answer, tolerance), figures


def other_prompt_shows(
    servers: Servers, checkpoint: Path, prompt: Sequence[int], reference: Reference
) -> dict[str, Any]:
    """With another first quarter stock's answer is another: lost KV would be noticed.

    Raises:
        CheckFailed: it is not; the comparison is blind.
    """
    quarter = len(prompt) // 4
    other = [*cut_ids(checkpoint, quarter, seed=1), *prompt[quarter:]]
    gap = gap_at_first_token(reference.answer, servers.ask("single", other))
    if not gap > 2 * reference.tolerance:
        raise CheckFailed(f"another prompt differs by {gap:.3g} only: the comparison is blind")
    return {"gap": gap if math.isfinite(gap) else "no candidate in common"}


def pool_answers(
    servers: Servers,
    prompt: Sequence[int],
    plan: Any,
    reference: Reference,
    server: str = "router",
) -> dict[str, Any]:
    """Compare the pool's answer, by way of a server by name, with stock's.

    Raises:
        AssertionError: a token or a log-probability is off.
    """
    began = time.monotonic()
    ours = servers.ask(server, prompt, plan, len(reference.answer.tokens))
    took = time.monotonic() - began
    found = compare(reference.answer, ours, reference.tolerance)
    if found.compared == 0 and not found.early:
        raise CheckFailed("nothing was compared")
    return {
        "off by": found.worst,
        "tokens": found.compared,
        "parted at a tie": found.early,
        "answer s": took,
    }
