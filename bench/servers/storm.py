"""A storm of mixed requests, some of them given up at random moments; nothing may be left behind.

    python -m bench.servers.storm [--requests 300] [--abort 0.3] [--seed 1] [--at-once 8]
                           [--backend nixl] [--form one-server] [--slots 4096]

Planned and forced plans, streaming or not, batches, requests that must be refused; clients that
abort and clients that disconnect. Every request must end in stock's answer or in a clear error,
within ten seconds of its cause; afterwards every KV slot is free, on prefill and on decode, and a
new request gets stock's answer. Exit status 1 if anything is wrong, with the seed to repeat it.
`--form one-server` has one server prefill and decode, with longer outputs; with few `--slots` an
instance decode runs short of slots and requests are retracted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests
from tqdm import tqdm

from bench.servers.flags import check
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
from sglang_cdsp.cli.parser import OneLineParser, integer, number
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.first_token import prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import RunningStack, running, single, together

BATCH_LENGTHS = LENGTHS[:6]
OUTPUT = 4
END_WITHIN_S = 10.0
BAD_SHARE, BATCH_SHARE, STREAM_SHARE, DISCONNECT_SHARE = 0.08, 0.15, 0.4, 0.5

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """One request of the storm.

    Attributes:
        prompts: token ids, several for a batch.
        plans: the plan that each prompt demands, None to leave it to the policy.
        bad: what makes the request one to refuse, as fields and sampling parameters; {} if nothing.
        leave_s: when its client gives up, None for never.
        disconnect: whether it then closes the connection instead of aborting.
        asks: sampling parameters beside the storm's own.
    """

    rid: str
    prompts: tuple[Prompt, ...]
    plans: tuple[Any, ...] = (None,)
    stream: bool = False
    bad: dict[str, Any] = field(default_factory=dict)
    leave_s: float | None = None
    disconnect: bool = False
    asks: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether the request must be answered."""
        return not self.bad and self.leave_s is None


@dataclass(frozen=True)
class End:
    """How a request ended.

    Attributes:
        how: "answered", "refused", "left" or "error".
        tokens: of each prompt, if answered.
        seconds: from the cause of an end without an answer; 0 for other ends.
        words: of an error.
        status: HTTP status of an answer or of an error, 0 where there was none.
    """

    how: str
    tokens: tuple[Prompt, ...] = ()
    seconds: float = 0.0
    words: str = ""
    status: int = 0


def draw(
    rng: random.Random, index: int, abort_share: float, form: StormForm = DISAGGREGATED
) -> Job:
    """Draw one request that can be asked of a form."""
    batch = rng.random() < BATCH_SHARE
    lengths = rng.choices(BATCH_LENGTHS, k=rng.randint(2, 3)) if batch else []
    prompts = tuple(
        draw_prompt(rng, n)
        for n in lengths or rng.choices([*form.lengths], [*form.lengths.values()])
    )
    plans = tuple(draw_plan(rng, len(prompt)) for prompt in prompts)
    bad: dict[str, Any] = {}
    if rng.random() < BAD_SHARE and not batch:
        bad = rng.choice(bad_ones(prompts[0], form))
    leave_s = rng.random() ** 2 * 4 if rng.random() < abort_share else None
    stream = rng.random() < STREAM_SHARE
    disconnect = stream and leave_s is not None and rng.random() < DISCONNECT_SHARE
    # SGLang aborts every id that begins with the one named: none may begin with another.
    rid = f"storm-{index:06d}"
    asks = {"max_new_tokens": rng.choice(form.outputs)} if len(form.outputs) > 1 else {}
    return Job(rid, prompts, plans, stream, bad, leave_s, disconnect, asks)


def draw_prompt(rng: random.Random, length: int) -> Prompt:
    """One of three prompts of a length."""
    seed = rng.randrange(3)
    return tuple(prompt_tokens(seed, length))


def draw_plan(rng: random.Random, length: int) -> Any:
    """A plan of two chunks on groups that grow, or None for the policy's."""
    if rng.random() < 0.5 or length < 2:
        return None
    order = rng.sample(range(POOL), POOL)
    first, last = sorted((rng.randint(1, POOL), rng.randint(1, POOL)))
    cut = rng.randint(1, length - 1)
    return [(cut, order[:first]), (length - cut, order[:last])]


def bad_ones(prompt: Prompt, form: StormForm = DISAGGREGATED) -> list[dict[str, Any]]:
    """Ways to make a request that must be refused."""
    length = len(prompt)
    plans = [[(length + 1, [0])], [(length, [POOL])], "all of it"]
    return [
        *({"sampling_params": {"custom_params": {"cdsp_plan": plan}}} for plan in plans),
        *([{"sampling_params": {"n": 2}}] if form.samples_refused else []),
        {"sampling_params": {"regex": "([a"}},
        {"input_ids": [*prompt[:-1], 10**7]},
        {"input_ids": [5] * (CONTEXT_LENGTH + 10)},
        {"session_params": {"id": "none"}},
    ]


def body_of(job: Job) -> dict[str, Any]:
    """The request as it goes over the wire."""
    base = {"max_new_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, **job.asks}
    params = [
        {**base, **({"custom_params": {"cdsp_plan": plan}} if plan is not None else {})}
        for plan in job.plans
    ]
    one = len(job.prompts) == 1
    bad = dict(job.bad)
    extra = bad.pop("sampling_params", {})
    return {
        "rid": job.rid,
        "input_ids": list(job.prompts[0]) if one else [list(prompt) for prompt in job.prompts],
        "sampling_params": {**params[0], **extra} if one else params,
        "stream": job.stream,
        **bad,
    }


def ask(
    stack: RunningStack, job: Job, url: str | None = None, form: StormForm = DISAGGREGATED
) -> End:
    """Send a request, through the router unless ``url`` is given, and wait for its end."""
    caused_s = [time.monotonic()]
    timer = None
    if job.leave_s is not None and not job.disconnect:
        timer = threading.Timer(job.leave_s, abort, (stack, job.rid, caused_s, form))
        timer.start()
    try:
        if job.disconnect:
            return leave(stack, job)
        response = requests.post(f"{url or stack.url}/generate", json=body_of(job), timeout=120)
        end = read(response, job)
    except requests.RequestException as error:
        end = End("error", words=repr(error))
    finally:
        if timer is not None:
            timer.cancel()
    if end.how == "answered":
        return end
    how = "refused" if job.bad else "left" if job.leave_s is not None else "error"
    return End(how, (), time.monotonic() - caused_s[0], end.words, end.status)


def read(response: requests.Response, job: Job) -> End:
    """Read a whole answer."""
    if response.status_code != 200:
        return End("error", words=response.text, status=response.status_code)
    if job.stream:
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        answers = {answer.get("index", 0): answer for answer in map(json.loads, events)}
    else:
        whole = response.json()
        answers = dict(enumerate(whole if isinstance(whole, list) else [whole]))
    found = []
    for index in range(len(job.prompts)):
        answer = answers.get(index, {})
        reason = (answer.get("meta_info") or {}).get("finish_reason") or {}
        if reason.get("type") != "length":
            words = reason.get("message") or json.dumps(answer)[:300]
            return End("error", words=words, status=response.status_code)
        found.append(tuple(answer["output_ids"]))
    return End("answered", tuple(found), status=response.status_code)


def leave(stack: RunningStack, job: Job) -> End:
    """Read events until it is time to leave, then close the connection."""
    assert job.leave_s is not None
    until_s = time.monotonic() + job.leave_s
    patience = (30.0, max(job.leave_s, 0.01))
    try:
        with requests.post(
            f"{stack.url}/generate", json=body_of(job), stream=True, timeout=patience
        ) as response:
            for _ in response.iter_lines():
                if time.monotonic() > until_s:
                    break
    except requests.RequestException:
        pass  # nothing came for so long: that is when this client leaves
    return End("left")


def abort(stack: RunningStack, rid: str, caused_s: list[float], form: StormForm) -> None:
    """``/abort_request`` on every server that has a part in the request; notes when."""
    for name in form.told:
        with contextlib.suppress(requests.RequestException):  # a server that is gone has it no more
            requests.post(f"{stack.urls[name]}/abort_request", json={"rid": rid}, timeout=30)
    caused_s[0] = time.monotonic()


def storm(
    stack: RunningStack,
    *,
    count: int,
    abort_share: float,
    seed: int,
    at_once: int,
    form: StormForm = DISAGGREGATED,
) -> list[str]:
    """Run the storm on servers with a stock one ("single") beside them.

    Args:
        stack: pool, decode, router and "single".
        count: requests.
        abort_share: share of requests that are given up.
        seed: draws everything but the order of events.
        at_once: requests in flight.
        form: of the pool.

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
    with ThreadPoolExecutor(at_once) as threads:
        ends = list(
            tqdm(
                threads.map(lambda job: ask(stack, job, form=form), jobs),
                total=count,
                file=sys.stderr,
            )
        )
    wrong = [
        text for job, end in zip(jobs, ends, strict=True) if (text := fault(job, end, reference))
    ]
    deadline = time.monotonic() + END_WITHIN_S
    while (left := form.slots(stack)) != at_start and time.monotonic() < deadline:
        time.sleep(0.2)
    if left != at_start:
        wrong.append(f"free slots {left}, at start {at_start}")
    for prompt in list(prompts)[:3]:
        if alone(stack, prompt, stack.url, longest) != reference[prompt]:
            wrong.append("a new request after the storm is wrong")
    counts = Counter(end.how for end in ends)
    slowest = max((end.seconds for end in ends), default=0.0)
    print(f"{count} requests: {json.dumps(counts)}; slowest end without an answer {slowest:.1f} s")
    return wrong


def alone(stack: RunningStack, prompt: Prompt, url: str, output: int) -> Prompt:
    """The answer of ``output`` tokens to one prompt that nobody gives up."""
    rid = f"alone-{random.getrandbits(64):x}"
    end = ask(stack, Job(rid, (prompt,), asks={"max_new_tokens": output}), url)
    if end.how != "answered":
        raise RuntimeError(f"{len(prompt)} tokens alone at {url}: {end.words}")
    return end.tokens[0]


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
    options = parser.parse_args(arguments)
    check(parser, options)
    slots = options.slots or CONTEXT_LENGTH
    form = one_server_form(slots) if options.form == "one-server" else DISAGGREGATED
    # Mooncake's own default wants RDMA devices.
    os.environ.setdefault("MOONCAKE_PROTOCOL", "tcp")
    with kept_on_failure("bench-storm") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint)
        context = ("--context-length", str(CONTEXT_LENGTH))
        backend = ("--disaggregation-transfer-backend", options.backend)
        both = context if form is not DISAGGREGATED else (*context, *backend)
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
            )
    for line in wrong:
        print(line)
    print("all right" if not wrong else f"{len(wrong)} wrong; repeat with --seed {options.seed}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
