"""The requests of a storm, drawn by a seed: what each asks for, and whether its client leaves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from bench.servers.storm_forms import CONTEXT_LENGTH, DISAGGREGATED, LENGTHS, POOL, StormForm
from sglang_cdsp.testing.first_token import prompt_tokens

BATCH_LENGTHS = LENGTHS[:6]
OUTPUT = 4
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


def demands_of(job: Job) -> tuple[int, ...]:
    """The seats of the plans that a request brings."""
    chunks = [chunk for plan in job.plans if plan for chunk in plan]
    return tuple(sorted({seat for _, seats in chunks for seat in seats}))
