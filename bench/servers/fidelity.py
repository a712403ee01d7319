"""How far the simulator is from the real pool: records a run, then replays it.

The prefill server runs alone, with SGLang's own stand-in for decode, two instances on one core
each; with `--form one-server` one server decodes, too. A seeded Poisson mix arrives;
`python -m sglang_cdsp replay` compares.

    python -m bench.servers.fidelity --latency-model FILE [--rate 2] [--requests 150]
        [--policy NAME] [--form one-server] [--plan-log FILE]
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from bench.servers.flags import check
from bench.servers.mix import lengths, poisson
from bench.servers.storm_forms import FORMS, ONE_SERVER
from sglang_cdsp.__main__ import main as sglang_cdsp
from sglang_cdsp.cli.parser import OneLineParser, integer, number, policy
from sglang_cdsp.testing.checkpoint import LlamaShape, write_checkpoint
from sglang_cdsp.testing.first_token import post_prompt, prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import Deployment, one_server, prefill_only, running

KV_TOKENS = 65_536
"""KV slots of each instance of one server."""

OUTPUT = (16, 96)
"""Tokens of an answer of one server; uniform."""

Send = Callable[[str, str, int, int], None]
"""`send(url, rid, tokens, seed)`: a prompt of so many tokens, to the end of its answer."""


def first_token(url: str, rid: str, tokens: int, seed: int) -> None:
    """One prompt to its first token."""
    post_prompt(url, prompt_tokens(seed, tokens), rid=rid).raise_for_status()


def whole_answer(url: str, rid: str, tokens: int, seed: int) -> None:
    """One prompt to its last token, as a stream."""
    sampling = {
        "max_new_tokens": random.Random(f"output {seed}").randint(*OUTPUT),
        "temperature": 0,
        "ignore_eos": True,
    }
    body: dict[str, Any] = {
        "rid": rid,
        "input_ids": prompt_tokens(seed, tokens),
        "sampling_params": sampling,
        "stream": True,
    }
    answer = requests.post(f"{url}/generate", json=body, timeout=600)
    answer.raise_for_status()


def drive(url: str, send: Send, prompts: Sequence[int], arrivals_s: Sequence[float]) -> None:
    """Sends every prompt at its time and waits for all answers."""
    start = time.monotonic()
    with ThreadPoolExecutor(len(prompts)) as threads:
        sent = []
        for index, (tokens, at_s) in enumerate(zip(prompts, arrivals_s, strict=True)):
            time.sleep(max(0.0, start + at_s - time.monotonic()))
            sent.append(threads.submit(send, url, f"request-{index}", tokens, index))
        for answer in tqdm(sent, desc="answered", file=sys.stderr):
            answer.result()


def deployment(form: str, checkpoint: Path, flags: tuple[str, ...]) -> Deployment:
    """The server of a form, with two instances."""
    if form == ONE_SERVER:
        slots = ("--max-total-tokens", str(KV_TOKENS))
        return one_server(checkpoint, flags=(*flags, *slots))
    return prefill_only(checkpoint, flags=("--cdsp", *flags))


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and replay; returns replay's exit status."""
    parser = OneLineParser(prog="python -m bench.servers.fidelity", description=__doc__)
    parser.add_argument("--latency-model", type=Path, required=True, help="of `profile`")
    parser.add_argument("--policy", type=policy, default="cdsp-paper")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0])
    parser.add_argument("--rate", type=number(0.001, 1000.0), default=2.0, help="requests/s")
    parser.add_argument("--requests", type=integer(1, 10_000), default=150)
    parser.add_argument("--seed", type=integer(0, 1 << 32), default=1)
    parser.add_argument("--plan-log", type=Path, help="keep the recorded run there")
    parser.add_argument("--out", type=Path, help="each request's TTFTs, JSON lines")
    options = parser.parse_args(arguments)
    check(parser, options, files=("plan_log", "out"))
    send = whole_answer if options.form == ONE_SERVER else first_token
    with kept_on_failure("bench-fidelity") as scratch:
        checkpoint = write_checkpoint(scratch / "checkpoint")
        plan_log = (options.plan_log or scratch / "plans.jsonl").resolve()
        plan_log.unlink(missing_ok=True)
        flags = (
            *("--dp-size", "2", "--cdsp-policy", options.policy),
            *("--cdsp-latency-model", str(options.latency_model.resolve())),
            *("--cdsp-plan-log", str(plan_log)),
        )
        plan = deployment(options.form, checkpoint, flags)
        with running(plan, scratch / "logs", progress=print) as stack:
            for tokens in (200, 8000, 8000):  # first use of buffers and links
                send(stack.url, f"warm-up-{tokens}", tokens, tokens)
            time.sleep(1.0)
            warm_up = plan_log.read_text().count("\n")
            arrivals = list(islice(poisson(options.seed, options.rate), options.requests))
            drive(stack.url, send, lengths(options.seed, options.requests), arrivals)
            time.sleep(1.0)  # a line is written once all slots are free
        lines = plan_log.read_text().splitlines(keepends=True)
        plan_log.write_text("".join(lines[warm_up:]))
        out = ("--out", str(options.out)) if options.out else ()
        layers = ("--layers", str(LlamaShape().num_hidden_layers))
        model = ("--latency-model", str(options.latency_model))
        slots = ("--kv-tokens", str(KV_TOKENS))
        status = 0
        for fit in ((), ("--fit-speed",)):
            status = status or sglang_cdsp(
                ["replay", str(plan_log), *model, *layers, *slots, *fit, *out]
            )
        return status


if __name__ == "__main__":
    sys.exit(main())
