"""A storm of mixed requests, some of them aborted at random moments; nothing may be left behind.

    python bench/storm.py [--requests 300] [--abort 0.3] [--seed 1] [--at-once 8]

Planned and forced plans, streaming or not, batches, bad plans. Every request must end in the right
answer or in a clear error; afterwards every KV slot is free and a new request gets stock's answer.
Exit status 1 if anything is wrong, with the seed to repeat it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from sglang_cdsp.demo.checkpoint import write_checkpoint
from sglang_cdsp.demo.stack import RunningStack, disaggregated, running

POOL = 4
LENGTHS = (1, 2, 17, 130, 400, 900, 2000, 4096, 8000)
WEIGHTS = (4, 4, 8, 10, 8, 6, 4, 2, 1)
END_WITHIN_S = 10.0


@dataclass(frozen=True)
class Job:
    """One request of the storm; ``leave_s`` is when its client gives up, None for never."""

    rid: str
    tokens: tuple[int, ...]
    plan: Any
    stream: bool
    bad: bool
    leave_s: float | None


def draw(rng: random.Random, index: int, abort_share: float) -> Job:
    """Draw one request."""
    length = rng.choices(LENGTHS, WEIGHTS)[0]
    seed = rng.randrange(3)
    tokens = tuple((seed * 7919 + i * 104729) % 4000 + 5 for i in range(length))
    plan = None
    if rng.random() < 0.5 and length >= 2:
        order = rng.sample(range(POOL), POOL)
        first, last = sorted((rng.randint(1, POOL), rng.randint(1, POOL)))
        cut = rng.randint(1, length - 1)
        plan = [(cut, order[:first]), (length - cut, order[:last])]
    bad = rng.random() < 0.05
    if bad:
        plan = [(length + 1, [0])]
    leave_s = rng.random() ** 2 * 4 if rng.random() < abort_share else None
    # SGLang aborts every id that begins with the one named: none may begin with another.
    return Job(f"storm-{index:06d}", tokens, plan, rng.random() < 0.4, bad, leave_s)


def ask(stack: RunningStack, job: Job) -> tuple[str, list[int]]:
    """Send a request; returns how it ended and the tokens if it was answered."""
    sampling: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    if job.plan is not None:
        sampling["custom_params"] = {"cdsp_plan": job.plan}
    body: dict[str, Any] = {
        "rid": job.rid,
        "input_ids": list(job.tokens),
        "sampling_params": sampling,
        "stream": job.stream,
    }
    timer = None
    if job.leave_s is not None:
        timer = threading.Timer(job.leave_s, abort, (stack, job.rid))
        timer.start()
    try:
        response = requests.post(f"{stack.url}/generate", json=body, timeout=120)
        text = response.text
        if response.status_code != 200:
            return ("refused" if job.bad else "error"), []
        if job.stream:
            events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
            answer = json.loads(events[-1]) if events else {}
        else:
            answer = json.loads(text)
        reason = (answer.get("meta_info") or {}).get("finish_reason") or {}
        if reason.get("type") == "length":
            return "answered", list(answer["output_ids"])
        return "error", []
    except (requests.RequestException, ValueError):
        return "error", []
    finally:
        if timer is not None:
            timer.cancel()


def abort(stack: RunningStack, rid: str) -> None:
    """``/abort_request`` on the prefill and on the decode server."""
    for name in ("prefill", "decode"):
        url = f"{stack.urls[name]}/abort_request"
        requests.post(url, json={"rid": rid}, timeout=10)


def free_tokens(stack: RunningStack) -> list[int]:
    """Free KV slots of every instance."""
    info = requests.get(f"{stack.urls['prefill']}/server_info", timeout=30).json()
    return [state["cdsp"]["free_tokens"] for state in info["internal_states"]]


def storm(stack: RunningStack, options: argparse.Namespace) -> list[str]:
    """Run the storm; returns what was wrong."""
    rng = random.Random(options.seed)
    jobs = [draw(rng, i, options.abort) for i in range(options.requests)]
    at_start = free_tokens(stack)
    reference: dict[tuple[int, ...], list[int]] = {}
    for job in jobs:
        if job.tokens not in reference:
            one = [(len(job.tokens), [0])]
            alone = Job(f"alone-{job.rid}", job.tokens, one, False, False, None)
            how, reference[job.tokens] = ask(stack, alone)
            if how != "answered":
                raise SystemExit(f"{len(job.tokens)} tokens alone on one instance: {how}")
    with ThreadPoolExecutor(options.at_once) as threads:
        results = list(
            tqdm(threads.map(lambda job: ask(stack, job), jobs), total=len(jobs), file=sys.stderr)
        )
    wrong: list[str] = []
    ends: Counter[str] = Counter()
    for job, (how, tokens) in zip(jobs, results, strict=True):
        if how == "error" and job.bad:  # a streaming client gets the refusal as an event
            how = "refused"
        ends["aborted" if how == "error" and job.leave_s is not None else how] += 1
        if how == "answered" and tokens != reference[job.tokens]:
            wrong.append(f"{job.rid}: {tokens} for {reference[job.tokens]}")
        if how == "answered" and job.bad:
            wrong.append(f"{job.rid}: a bad plan was served")
        if how == "error" and job.leave_s is None:
            wrong.append(f"{job.rid}: failed though nobody aborted it")
    deadline = time.monotonic() + END_WITHIN_S
    while (left := free_tokens(stack)) != at_start and time.monotonic() < deadline:
        time.sleep(0.2)
    if left != at_start:
        wrong.append(f"free slots {left}, at start {at_start}")
    again = Job("after", jobs[0].tokens, None, False, False, None)
    if ask(stack, again)[1] != reference[jobs[0].tokens]:
        wrong.append("a new request after the storm is wrong")
    print(f"seed {options.seed}: {len(jobs)} requests, " + json.dumps(dict(ends)))
    return wrong


def main() -> None:
    """Start the servers, run the storm, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--abort", type=float, default=0.3, help="share that is aborted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        write_checkpoint(checkpoint)
        flags = ("--cdsp", "--dp-size", str(POOL), "--cdsp-allow-request-plans")
        plan = disaggregated(checkpoint, prefill_flags=flags)
        with running(plan, Path(scratch) / "logs") as stack:
            wrong = storm(stack, options)
    for line in wrong:
        print(line)
    print("all right" if not wrong else f"{len(wrong)} wrong; repeat with --seed {options.seed}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
