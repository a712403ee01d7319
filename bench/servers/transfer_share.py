"""The share of TTFT that moving KV to decode adds after the last layer.

Real servers: a pool of two instances, a decode server, SGLang's router. The same prompts go to a
pool whose KV leaves layer by layer and to one whose KV leaves after each chunk; the plan log has
when home sampled the first token and when all holders' writes had ended. Rounds alternate.

    python -m bench.servers.transfer_share [--tokens 8000] [--repeats 5] [--rounds 2]
        [--wire tcp] [--out build/transfer_share.json]
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from bench.servers.flags import check
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.first_token import Plan, prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import disaggregated, running
from sglang_cdsp.transfer.chunk_write import AT_ONCE_VAR

MODES = {"layer by layer": "", "after each chunk": "1"}
MOST_TOKENS = 30_000
LOGGED_WITHIN_S = 30.0
GOAL = 0.02


@dataclass(frozen=True)
class Sample:
    """One prompt, in seconds after its arrival.

    Attributes:
        first_token_s: home sampled it, which follows the last layer.
        drained_s: the writes of all holders had ended.
    """

    first_token_s: float
    drained_s: float

    @property
    def added_s(self) -> float:
        """What decode still waited for after the last layer."""
        return max(0.0, self.drained_s - self.first_token_s)

    @property
    def share(self) -> float:
        """The added part of the time until decode has everything."""
        return self.added_s / self.drained_s


def plans_of(tokens: int) -> dict[str, Plan]:
    """A prompt that one chunk on both instances computes, and one whose group grows."""
    half = tokens // 2
    return {
        "one chunk on 2": [(tokens, [0, 1])],
        "half on 1, half on 2": [(half, [0]), (tokens - half, [0, 1])],
    }


def read_sample(path: Path, rid: str) -> Sample:
    """The plan log's line of a request, once it is there.

    Raises:
        RuntimeError: it did not come, or the request failed.
    """
    deadline_s = time.monotonic() + LOGGED_WITHIN_S
    while time.monotonic() < deadline_s:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [record for record in map(json.loads, lines) if record["rid"] == rid]
        if found:
            record = found[0]
            if record["outcome"] != "finished":
                raise RuntimeError(f"{rid} {record['outcome']}: {record['error']}")
            return Sample(record["ttft_s"]["measured"], record["kv_drained_s"])
        time.sleep(0.05)
    raise RuntimeError(f"no line of {rid} in {path} after {LOGGED_WITHIN_S:g} s; see the logs")


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for servers that are started meanwhile; "" takes one away."""
    before = dict(os.environ)
    try:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value:
                os.environ[name] = value
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(
    scratch: Path, checkpoint: Path, tokens: int, repeats: int, values: Mapping[str, str]
) -> dict[str, list[Sample]]:
    """Start the servers and send every plan's prompts; the first of each warms up."""
    log = scratch / "plans.jsonl"
    flags = ("--cdsp", "--dp-size", "2", "--cdsp-allow-request-plans", "--cdsp-plan-log", str(log))
    found: dict[str, list[Sample]] = {name: [] for name in plans_of(tokens)}
    with variables(values):
        deployment = disaggregated(checkpoint, prefill_flags=flags)
        with running(deployment, scratch) as stack:
            for repeat in range(repeats + 1):
                for number, (name, plan) in enumerate(plans_of(tokens).items()):
                    rid = f"share-{number}-{repeat}"
                    body: dict[str, Any] = {
                        "rid": rid,
                        "input_ids": prompt_tokens(10 * repeat + number, tokens),
                        "sampling_params": {
                            "max_new_tokens": 2,
                            "temperature": 0,
                            "custom_params": {"cdsp_plan": plan},
                        },
                    }
                    requests.post(
                        f"{stack.url}/generate", json=body, timeout=600
                    ).raise_for_status()
                    if repeat:
                        found[name].append(read_sample(log, rid))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both ways in turn and print the table."""
    parser = OneLineParser(prog="python -m bench.servers.transfer_share", description=__doc__)
    parser.add_argument("--tokens", type=integer(2, MOST_TOKENS), default=8000)
    parser.add_argument("--repeats", type=integer(1), default=5)
    parser.add_argument("--rounds", type=integer(1), default=1)
    parser.add_argument("--wire", choices=("shared memory", "tcp"), default="shared memory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every time, JSON")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    wire = {"UCX_TLS": "tcp"} if options.wire == "tcp" else {}
    found: dict[tuple[str, str], list[Sample]] = {}
    with kept_on_failure("bench-transfer-share") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint)
        for turn in range(options.rounds):
            for mode, value in MODES.items():
                place = scratch / f"{turn}-{mode.replace(' ', '-')}"
                place.mkdir()
                values = {**wire, AT_ONCE_VAR: value}
                samples = measure(place, checkpoint, options.tokens, options.repeats, values)
                for plan, times in samples.items():
                    found.setdefault((plan, mode), []).extend(times)
    print(f"{options.tokens} tokens over {options.wire}, medians; goal: under {GOAL:.0%}")
    print(f"{'plan':22} {'KV leaves':18} {'first token':>12} {'added':>10} {'share':>8}")
    for (plan, mode), times in found.items():
        first, added, share = (
            statistics.median(getattr(sample, name) for sample in times)
            for name in ("first_token_s", "added_s", "share")
        )
        print(f"{plan:22} {mode:18} {first:10.3f} s {1000 * added:7.1f} ms {share:8.2%}")
    if options.out is not None:
        rows = [
            {
                "plan": plan,
                "mode": mode,
                "first_token_s": [sample.first_token_s for sample in times],
                "drained_s": [sample.drained_s for sample in times],
            }
            for (plan, mode), times in found.items()
        ]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
