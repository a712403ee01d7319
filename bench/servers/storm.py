"""A storm of mixed requests, some of them given up at random moments; nothing may be left behind.

    python -m bench.servers.storm [--requests 300] [--abort 0.3] [--seed 1] [--at-once 8]
                           [--backend nixl] [--longest TOKENS]
                           [--form one-server] [--slots 4096] [--turn-roles SECONDS]
                           [--flush-every SECONDS]

Planned and forced plans, streaming or not, batches, requests that must be refused; clients that
abort and clients that disconnect. Every request must end in stock's answer or in a clear error,
within ten seconds of its cause; afterwards every KV slot is free, on prefill and on decode, and a
new request gets stock's answer. Exit status 1 if anything is wrong, with the seed to repeat it.
`--form one-server` has one server prefill and decode, with longer outputs; with few `--slots` an
instance decode runs short of slots and requests are retracted. `--turn-roles` draws other roles for
its seats every so many seconds; only a request whose own plan names a seat that decodes only just
then may be refused for it, and its client asks again without a plan. `--flush-every` flushes the
caches of one server every so many seconds (`bench/servers/flushing.py`): a flush that is refused as
prompts run is asked for again, while new ones wait. After the last one every slot is free, none is
cached, and the controller's index is empty.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import requests
from tqdm import tqdm

from bench.servers.flags import check
from bench.servers.flushing import Flusher, await_empty
from bench.servers.storm_clients import End, ask
from bench.servers.storm_forms import (
    CONTEXT_LENGTH,
    DISAGGREGATED,
    FORMS,
    LENGTHS,
    POOL,
    StormForm,
    one_server_form,
    plan_servers,
)
from bench.servers.storm_jobs import OUTPUT, Job, Prompt, demands_of, draw
from bench.servers.turning import REFUSED, RoleTurner, Turn, without_chunks
from sglang_cdsp.cli.parser import OneLineParser, integer, number
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import RunningStack, running, single, together

END_WITHIN_S = 10.0


def storm(
    stack: RunningStack,
    *,
    count: int,
    abort_share: float,
    seed: int,
    at_once: int,
    form: StormForm = DISAGGREGATED,
    turn_every_s: float | None = None,
    flush_every_s: float | None = None,
) -> list[str]:
    """Run the storm on servers with a stock one ("single") beside them.

    Args:
        stack: pool, decode, router and "single".
        count: requests.
        abort_share: share of requests that are given up.
        seed: draws everything but the order of events.
        at_once: requests in flight.
        form: of the pool.
        turn_every_s: seconds between two drawings of the seats' roles, None to leave them alone.
        flush_every_s: seconds between two flushes of a server that keeps prefixes, None for none.

    Returns:
        What was wrong, [] if nothing.
    """
    print(f"storm: seed {seed}", flush=True)
    rng = random.Random(seed)
    jobs = [draw(rng, i, abort_share, form) for i in range(count)]
    at_start = form.slots(stack)
    prompts = dict.fromkeys(prompt for job in jobs for prompt in job.prompts)
    longest = max(form.outputs)
    reference = {p: alone(stack, p, stack.urls["single"], longest) for p in prompts}
    turner = (
        RoleTurner(stack.urls[form.asked], POOL, turn_every_s, random.Random(f"roles {seed}"))
        if turn_every_s is not None
        else None
    )

    flusher = Flusher(stack.urls[form.asked], flush_every_s) if flush_every_s is not None else None
    asked_again: list[str] = []

    def one(job: Job) -> End:
        if flusher is not None:
            flusher.may_send()
        sent_s = time.monotonic()
        end = ask(stack, job, form=form)
        if turner is None or not told_of_roles(job, end, turner.turns, sent_s, time.monotonic()):
            return end
        asked_again.append(job.rid)
        return ask(stack, without_plan(job), form=form)

    begin_s = time.monotonic()
    with turner or nullcontext(), flusher or nullcontext(), ThreadPoolExecutor(at_once) as threads:
        ends = list(tqdm(threads.map(one, jobs), total=count, file=sys.stderr))
    took_s = time.monotonic() - begin_s
    wrong = [] if turner is None else [*turner.wrong]
    wrong += [
        text for job, end in zip(jobs, ends, strict=True) if (text := fault(job, end, reference))
    ]
    deadline = time.monotonic() + END_WITHIN_S
    while (left := form.slots(stack)) != at_start and time.monotonic() < deadline:
        time.sleep(0.2)
    if left != at_start:
        wrong.append(f"free slots {left}, at start {at_start}")
    if flusher is not None:
        wrong += after_flushes(flusher, stack, form, at_start)
    for prompt in list(prompts)[:3]:
        if alone(stack, prompt, stack.url, longest) != reference[prompt]:
            wrong.append("a new request after the storm is wrong")
    counts = Counter(end.how for end in ends)
    slowest = max((end.seconds for end in ends), default=0.0)
    print(
        f"{count} requests: {json.dumps(counts)}; in {took_s:.0f} s; "
        f"slowest end without an answer {slowest:.1f} s"
    )
    if turner is not None:
        print(
            f"roles turned {len(turner.turns) - 1} times; {len(asked_again)} asked again without "
            f"a plan; {json.dumps(counted(stack, form))}"
        )
    return wrong


def after_flushes(
    flusher: Flusher, stack: RunningStack, form: StormForm, slots: Sequence[int]
) -> list[str]:
    """What is wrong after the last flush: nothing may be cached, and nothing known to be."""
    wrong = [*flusher.wrong]
    print(f"{flusher.flushed} flushes, and {flusher.refused} that were refused as prompts ran")
    if empty := await_empty(stack.urls[form.asked]):
        wrong.append(empty)
    if (free := form.free(stack)) != list(slots):
        wrong.append(f"after a flush {free} slots are free, of {list(slots)}")
    return wrong


def counted(stack: RunningStack, form: StormForm) -> dict[str, Any]:
    """What one server has counted of requests that went on elsewhere."""
    status = requests.get(f"{stack.urls[form.asked]}/cdsp/status", timeout=30).json()
    names = ("requests_moved", "longest_move_s", "requests_resumed", "requests_lost")
    return {name: status["counters"][name] for name in names}


def alone(stack: RunningStack, prompt: Prompt, url: str, output: int) -> Prompt:
    """The answer of ``output`` tokens to one prompt that nobody gives up."""
    rid = f"alone-{random.getrandbits(64):x}"
    end = ask(stack, Job(rid, (prompt,), asks={"max_new_tokens": output}), url)
    if end.how != "answered":
        raise RuntimeError(f"{len(prompt)} tokens alone at {url}: {end.words}")
    return end.tokens[0]


def told_of_roles(
    job: Job, end: End, turns: Collection[Turn], sent_s: float, ended_s: float
) -> bool:
    """Whether a request was refused for a plan that named a seat which took no chunks just then.

    Args:
        turns: of the seats so far.
        sent_s, ended_s: of the request, monotonic.
    """
    if end.how != "error" or REFUSED not in end.words:
        return False
    return bool(without_chunks(turns, sent_s, ended_s) & set(demands_of(job)))


def without_plan(job: Job) -> Job:
    """The request once more, under another id and planned by the policy."""
    return replace(job, rid=f"again-{job.rid}", plans=(None,) * len(job.prompts))


def fault(job: Job, end: End, reference: dict[Prompt, Prompt]) -> str:
    """What is wrong with an end, "" if nothing."""
    output = job.asks.get("max_new_tokens", OUTPUT)
    right = tuple(reference[prompt][:output] for prompt in job.prompts)
    if end.how == "answered" and job.bad:
        return f"{job.rid}: served, though it asks for {str(job.bad)[:80]}"
    if end.how == "answered" and end.tokens != right:
        return f"{job.rid}: {end.tokens} for {right}"
    if end.how == "error":
        return f"{job.rid}: failed though nobody gave it up: {end.words[:300]}"
    if end.how != "answered" and end.seconds > END_WITHIN_S:
        return f"{job.rid}: {end.how} only {end.seconds:.1f} s after its cause"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the servers, run the storm, report."""
    parser = OneLineParser(prog="python -m bench.servers.storm", description=__doc__)
    parser.add_argument("--requests", type=integer(1, 1_000_000), default=300)
    parser.add_argument(
        "--abort", type=number(0.0, 1.0), default=0.3, help="share that is given up"
    )
    parser.add_argument("--seed", type=integer(0, 1 << 32), default=1)
    parser.add_argument("--at-once", type=integer(1, 1024), default=8)
    parser.add_argument("--backend", choices=["nixl", "mooncake"], default="nixl")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0])
    parser.add_argument("--slots", type=integer(512, 1 << 24), help="KV slots of an instance")
    parser.add_argument(
        "--longest", type=integer(1, max(LENGTHS)), help="tokens of the longest prompt"
    )
    parser.add_argument(
        "--turn-roles",
        type=number(0.1, 3600.0),
        metavar="SECONDS",
        help="between two drawings of the seats' roles",
    )
    parser.add_argument(
        "--flush-every",
        type=number(0.1, 3600.0),
        metavar="SECONDS",
        help="between two flushes of the caches",
    )
    options = parser.parse_args(arguments)
    for flag, value in (("turn-roles", options.turn_roles), ("flush-every", options.flush_every)):
        if value is not None and options.form != "one-server":
            parser.error(f"--{flag} is for one server that decodes: give --form one-server too")
    check(parser, options)
    slots = options.slots or CONTEXT_LENGTH
    form = one_server_form(slots) if options.form == "one-server" else DISAGGREGATED
    if options.longest is not None:
        form = replace(form, longest=min(form.longest, options.longest))
    # Mooncake's own default wants RDMA devices.
    os.environ.setdefault("MOONCAKE_PROTOCOL", "tcp")
    with kept_on_failure("bench-storm") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint)
        context = ("--context-length", str(CONTEXT_LENGTH))
        backend = ("--disaggregation-transfer-backend", options.backend)
        both = context if options.form == "one-server" else (*context, *backend)
        pool = plan_servers(form, checkpoint, options.slots, both)
        servers = together(pool, single(checkpoint, flags=context))
        with running(servers, scratch / "logs") as stack:
            wrong = storm(
                stack,
                count=options.requests,
                abort_share=options.abort,
                seed=options.seed,
                at_once=options.at_once,
                form=form,
                turn_every_s=options.turn_roles,
                flush_every_s=options.flush_every,
            )
    for line in wrong:
        print(line)
    print("all right" if not wrong else f"{len(wrong)} wrong; repeat with --seed {options.seed}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
