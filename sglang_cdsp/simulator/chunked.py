"""What one server is compared with: independent replicas with chunked prefill, as stock SGLang has.

A request goes to the replica with the least left to do. There prompts are prefilled first come
first served, at most so many tokens an iteration, from several prompts if the first leaves room.
With *mixed* iterations the running requests each get a token in every iteration; without, they wait
until no prompt does. An iteration's chunks cost what the latency model says of one instance, its
constant once; its decode rows what the step-time model says, and its constant where there is no
chunk, whose constant pays for reading the weights.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_cdsp.planner.latency import Coefficients
from sglang_cdsp.planner.types import PlannedChunk
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.task import Task, make_tasks
from sglang_cdsp.simulator.types import Request


@dataclass(slots=True, eq=False)
class _Decoding:
    """A request that decodes: its tokens so far, and when the last one came."""

    task: Task
    left: int
    last_s: float
    gaps: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Replica:
    """One replica.

    Attributes:
        now_s: until when it has worked. free: KV slots promised to nobody.
        waiting: not admitted. prefilling: prompts with the tokens that have run.
    """

    number: int
    free: int
    now_s: float = 0.0
    waiting: deque[Task] = field(default_factory=deque)
    prefilling: dict[Task, int] = field(default_factory=dict)
    decoding: list[_Decoding] = field(default_factory=list)
    tokens: int = 0
    prompt_left: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefilling or self.decoding)


def simulate_chunked(
    setup: Setup, requests: Sequence[Request], chunk_tokens: int, *, mixed: bool = True
) -> Result:
    """Run the requests on `setup.instances` replicas to the last token.

    Args:
        setup: its latency model's row of one instance, its decode model and KV slots are used.
        chunk_tokens: the most prompt tokens of an iteration.
        mixed: running requests get a token in an iteration with chunks too.

    Raises:
        SetupError: the latency model has no row of one instance, or a request fits no replica.
    """
    model = setup.true_model or setup.model
    if 1 not in model.sp_sizes:
        raise SetupError("chunked prefill runs on one instance: the latency model needs SP size 1")
    if chunk_tokens < 1:
        raise SetupError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    tasks = make_tasks(requests)
    for task in tasks:
        if task.total_tokens > setup.slots:
            raise SetupError(
                f"request {task.rid}: {task.total_tokens} tokens do not fit {setup.slots} KV slots"
            )
    costs = _Costs(model.coefficients(1), setup.decode)
    replicas = [_Replica(i, setup.slots) for i in range(setup.instances)]
    iterations = 0
    agenda = [(task.request.arrival_s, -1, task.order) for task in tasks]
    heapq.heapify(agenda)
    while agenda:
        now, which, order = heapq.heappop(agenda)
        if which < 0:
            task = tasks[order]
            # What is left to do, prompts first: decode rows are shared by all of a batch.
            replica = min(replicas, key=lambda r: (r.prompt_left, r.tokens, r.number))
            # One that has an iteration under way goes on by itself at its end.
            goes_on = not replica.idle or replica.now_s > now
            replica.waiting.append(task)
            replica.prompt_left += task.request.prompt_tokens
            if goes_on:
                continue
            replica.now_s = now
        else:
            replica = replicas[which]
        if not replica.idle:
            end = _iterate(replica, costs, chunk_tokens, mixed=mixed)
            iterations += 1
            heapq.heappush(agenda, (end, replica.number, iterations))
    return Result(
        setup=setup,
        records=tuple(task.record() for task in tasks),
        end_s=max((task.end_s or 0.0 for task in tasks), default=0.0),
        busy_s=tuple(r.prefill_s for r in replicas),
        peak_slots=(),
        decode_busy_s=tuple(r.decode_s for r in replicas),
        decode_peak_slots=(),
        events=iterations,
    )


@dataclass(frozen=True, slots=True)
class _Costs:
    row: Coefficients
    decode: DecodeModel

    def chunk(self, history: int, tokens: int) -> float:
        """A chunk without the constant, which an iteration pays once."""
        return self.row.predict(history, tokens) - self.row.a

    def rows(self, batch: int, tokens: int) -> float:
        """Decode rows without the constant."""
        return self.decode.b * batch + self.decode.c * tokens


def _iterate(replica: _Replica, costs: _Costs, chunk_tokens: int, *, mixed: bool) -> float:
    """One iteration of a replica that has something to do; when it ends."""
    start = replica.now_s
    chunks = _chunks(replica, chunk_tokens)
    batch = replica.decoding if mixed or not chunks else []
    chunk_s = sum(costs.chunk(replica.prefilling[task], tokens) for task, tokens in chunks)
    decode_s = costs.rows(len(batch), replica.tokens) if batch else 0.0
    constant = costs.row.a if chunks else costs.decode.a
    end = replica.now_s = start + constant + chunk_s + decode_s
    replica.prefill_s += chunk_s + (constant if chunks else 0.0)
    replica.decode_s += decode_s + (0.0 if chunks else constant)
    for one in batch:
        one.gaps.append((end - one.last_s, 1))
        one.last_s = end
        one.left -= 1
        replica.tokens += 1
    for one in [one for one in batch if not one.left]:
        _leave(replica, one)
    for task, tokens in chunks:
        _ran(replica, task, tokens, start, end)
    return end


def _chunks(replica: _Replica, most: int) -> list[tuple[Task, int]]:
    """The prompt tokens of the next iteration: what has begun, then who is next and has room."""
    chunks: list[tuple[Task, int]] = []
    for task, ran in replica.prefilling.items():
        tokens = min(most, task.request.prompt_tokens - ran)
        if tokens:
            chunks.append((task, tokens))
            most -= tokens
    while most and replica.waiting and replica.waiting[0].total_tokens <= replica.free:
        task = replica.waiting.popleft()
        replica.free -= task.total_tokens
        replica.prefilling[task] = 0
        task.bound_s = replica.now_s
        tokens = min(most, task.request.prompt_tokens)
        chunks.append((task, tokens))
        most -= tokens
    return chunks


def _ran(replica: _Replica, task: Task, tokens: int, start: float, end: float) -> None:
    """Some of a prompt has run; after the last of it comes the first token."""
    replica.prompt_left -= tokens
    task.ran.append(PlannedChunk(tokens, (replica.number,), start, end))
    replica.prefilling[task] += tokens
    if replica.prefilling[task] < task.request.prompt_tokens:
        return
    del replica.prefilling[task]
    task.first_token_s = task.transferred_s = task.decode_s = end
    task.decode_instance = replica.number
    replica.tokens += task.request.prompt_tokens
    one = _Decoding(task, task.request.output_tokens - 1, end)
    replica.decoding.append(one)
    if not one.left:
        _leave(replica, one)


def _leave(replica: _Replica, one: _Decoding) -> None:
    """Its last token has come."""
    request = one.task.request
    replica.decoding.remove(one)
    replica.tokens -= request.prompt_tokens + request.output_tokens - 1
    replica.free += one.task.total_tokens
    one.task.token_gaps_s = tuple(one.gaps)
    one.task.end_s = one.last_s
