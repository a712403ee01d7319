"""A policy's own re-plan, seen on real servers: instances come free that a prompt was not to have.

Four instances, a model of 16 layers, the policy `cdsp`. A long prompt holds instances 0 and 1, a
medium one instance 2; a third one is planned on what they leave, and grows when the medium one
ends. The long prompt is aborted meanwhile, so that the rest of the third one has a better plan. The
same prompt is asked once more on the idle pool: both answers must be the same.

    python -m bench.servers.replan [--rounds 4]

A start and a minute a round.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from bench.servers.flags import check
from bench.servers.interleave import LAYERS
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.testing.checkpoint import LlamaShape, write_checkpoint
from sglang_cdsp.testing.first_token import NO_DECODE, Plan, post_prompt, prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import prefill_only, running

HOLDS = 30_000
MEDIUM = 4_000
WATCHED = 24_000
HELD_S = 3.0
"""Until the long prompt is aborted: within the first chunk of the watched one."""


def answer(url: str, ids: Sequence[int], rid: str) -> tuple[int, float, float]:
    """A prompt's first token, its log-probability, and seconds until it came."""
    start_s = time.perf_counter()
    body: dict[str, Any] = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "rid": rid,
        **NO_DECODE,
    }
    got = requests.post(f"{url}/generate", json=body, timeout=600)
    got.raise_for_status()
    ((logprob, token, _),) = got.json()["meta_info"]["output_token_logprobs"]
    return token, logprob, time.perf_counter() - start_s


def one_round(url: str, number: int) -> str:
    """One try; whether the two answers agree, in words.

    Raises:
        RuntimeError: they do not.
    """
    watched = prompt_tokens(3 * number, WATCHED)
    holding: Plan = [(HOLDS, [0, 1])]
    with ThreadPoolExecutor() as threads:
        held = f"holds-{number}"
        threads.submit(
            post_prompt, url, prompt_tokens(3 * number + 1, HOLDS), rid=held, plan=holding
        )
        medium: Plan = [(MEDIUM, [2])]
        threads.submit(post_prompt, url, prompt_tokens(3 * number + 2, MEDIUM), plan=medium)
        time.sleep(0.4)
        abort = threading.Timer(
            HELD_S, requests.post, (f"{url}/abort_request",), {"json": {"rid": held}, "timeout": 60}
        )
        abort.start()
        token, logprob, seconds = answer(url, watched, f"watched-{number}")
    again, logprob_again, idle_s = answer(url, watched, f"idle-{number}")
    if token != again or abs(logprob - logprob_again) > 1e-4:
        raise RuntimeError(f"{token} ({logprob}) became {again} ({logprob_again})")
    error = abs(logprob - logprob_again)
    return f"{seconds:.1f} s, idle {idle_s:.1f} s; same token, log-probabilities {error:.1e} apart"


def replans(log: Path) -> list[dict[str, Any]]:
    """What the plan log has of requests that were planned anew."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        {"rid": entry["rid"], **found} for entry in entries for found in entry.get("replans", ())
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and print what was planned anew, and why."""
    parser = OneLineParser(prog="python -m bench.servers.replan", description=__doc__)
    parser.add_argument("--rounds", type=integer(1), default=4)
    options = parser.parse_args(arguments)
    check(parser, options)
    with kept_on_failure("bench-replan") as scratch:
        log = scratch / "plans.jsonl"
        shape = LlamaShape(num_hidden_layers=LAYERS)
        checkpoint = write_checkpoint(scratch / "checkpoint", shape=shape)
        flags = (
            *("--cdsp", "--dp-size", "4", "--cdsp-policy", "cdsp", "--cdsp-allow-request-plans"),
            *("--cdsp-plan-log", str(log), "--max-total-tokens", "40000"),
            *("--context-length", "60000"),
        )
        with running(prefill_only(checkpoint, flags=flags), scratch / "logs") as stack:
            for number in range(options.rounds):
                print(f"round {number}: {one_round(stack.url, number)}", flush=True)
        found = replans(log)
    for each in found:
        before, after = each["from"]["chunks"], each["to"]["chunks"]
        print(f"{each['rid']}, {each['at_s']:.1f} s: {before} -> {after}: {each['reason']}")
    if not found:
        print("no plan was changed")


if __name__ == "__main__":
    main()
