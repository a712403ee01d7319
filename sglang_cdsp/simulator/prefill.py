"""The prefill pool: what each instance does, and how the planner sees it.

The pool is shown to the policy as the server shows it (controller/ledger.py): an instance's queue
time reaches to the latest expected end of the plans bound to it, and moves when chunks end early or
late; its free slots are those promised to nobody. Every instance runs its tasks in the order in
which they were bound, and a chunk starts when all its members have come to it. A prompt on one
instance runs alone, where a server's stock SGLang may batch several short ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sglang_cdsp.planner.groups import straddles
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Plan, PlannedChunk, PoolView
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.task import Task

ROUNDING_S = 1e-9
"""A chunk that ends this close to its planned time ended on time."""

LATE_S = 1e-3
"""What an instance still has to do, in the unified form, when it should be idle by now."""

Noise = Callable[[int, int], float]
"""The factor on a chunk's time, by its request's position among the arrivals and its own."""


class ChunkListener(Protocol):
    """The listener that the pool tells of chunks."""

    def chunk_started(self, now: float, task: Task) -> None: ...

    def chunk_ended(self, now: float, task: Task, chunk: PlannedChunk) -> None: ...


class PrefillPool:
    """The simulated prefill pool, instances 0..n-1. Others read its attributes, not change them.

    Attributes:
        free: KV slots promised to nobody, per instance.
        up: False for instances that decode has taken (the unified form, which sets it).
        busy_s: seconds each instance has computed.
        peak_slots: most KV slots ever promised, per instance.
    """

    def __init__(self, setup: Setup, agenda: Agenda, listener: ChunkListener, noise: Noise) -> None:
        n = setup.instances
        self._setup, self._agenda, self._listener, self._noise = setup, agenda, listener, noise
        self._model: LatencyModel = setup.true_model or setup.model
        self._rows: dict[int, Coefficients] = {}
        self.capacity = (setup.slots,) * n
        self.free = list(self.capacity)
        self.up = [True] * n
        self.busy_s = [0.0] * n
        self.peak_slots = [0] * n
        self._queues: list[deque[Task]] = [deque() for _ in range(n)]
        self._free_at = [0.0] * n
        self._running: list[Task | None] = [None] * n
        self._bound = 0

    # -- as the policy sees it --------------------------------------------------------------

    def view(self, now: float) -> PoolView:
        """The pool at this moment."""
        queue = [at - now if at > now else 0.0 for at in self._free_at]
        if self._setup.unified:
            # Late instances must not look idle: what decode may take next has nothing behind it.
            queue = [max(q, LATE_S) if w else q for q, w in zip(queue, self._queues, strict=True)]
        return PoolView(
            tuple(queue),
            tuple(self.free),
            self._setup.instances_per_node,
            None if all(self.up) else tuple(self.up),
            self.capacity,
        )

    # -- a task's way -----------------------------------------------------------------------

    def bind(self, now: float, task: Task, plan: Plan) -> None:
        """Promise the plan its slots and put it behind what its instances have to do."""
        members = plan.instances
        chunks = plan.chunks
        task.plan, task.bound_s, task.seq = plan, now, self._bound
        self._bound += 1
        task.expected_s = now + chunks[-1].end_s
        task.joins, task.missing = _joins(now, task, plan)
        task.slots = kv_demand(plan.placement, self._setup.page_size)
        self.take(now, task, task.slots)
        free_at, end = self._free_at, task.expected_s
        for i in members:
            queue = self._queues[i]
            if not queue:
                task.missing[task.joins[i]] -= 1
            queue.append(task)
            if end > free_at[i]:
                free_at[i] = end
        if not task.missing[0]:
            self._start(now, task)

    def release(self, now: float, task: Task) -> None:
        """All its KV is elsewhere: the promised slots are free."""
        self.give(now, task, task.slots)
        task.slots = {}

    def take(self, now: float, task: Task, slots: Mapping[int, int]) -> None:
        """Promise slots, per instance."""
        for i, need in slots.items():
            free = self.free[i] = self.free[i] - need
            if free < 0:
                raise InvariantError(
                    now, task.rid, f"instance {i} has {free + need} KV slots free, not {need}"
                )
            held = self.capacity[i] - free
            if held > self.peak_slots[i]:
                self.peak_slots[i] = held

    def give(self, now: float, task: Task, slots: Mapping[int, int]) -> None:
        """Slots are free again, per instance."""
        for i, held in slots.items():
            self.free[i] += held
            if self.free[i] > self.capacity[i]:
                raise InvariantError(
                    now, task.rid, f"instance {i} has {self.free[i]} of {self.capacity[i]} free"
                )

    def check_empty(self, now: float, rid: str) -> None:
        """Nothing runs, nothing is held."""
        if any(self._queues) or tuple(self.free) != self.capacity:
            raise InvariantError(now, rid, f"the pool is not empty at the end: free {self.free}")

    def _start(self, now: float, task: Task) -> None:
        assert task.plan is not None
        number = task.chunk
        chunk = task.plan.chunks[number]
        seconds = self._seconds(task.ran, chunk) * self._noise(task.order, number)
        for i in chunk.instances:
            other = self._running[i]
            if other is not None:
                raise InvariantError(now, task.rid, f"instance {i} still runs {other.rid}")
            if not self.up[i]:
                raise InvariantError(now, task.rid, f"instance {i} decodes")
            self._running[i] = task
            self.busy_s[i] += seconds
        task.started_s, task.running = now, True
        self._agenda.at(now + seconds, self._ended, task)
        if not number:
            self._listener.chunk_started(now, task)

    def _seconds(self, ran: Sequence[PlannedChunk], chunk: PlannedChunk) -> float:
        """What the chunk takes: the true model's time, more if its group straddles nodes."""
        size = len(chunk.instances)
        row = self._rows.get(size)
        if row is None:
            row = self._rows[size] = self._model.coefficients(size)
        seconds = row.predict(sum(before.tokens for before in ran), chunk.tokens)
        cost = self._setup.straddle_cost
        if cost and straddles(chunk.instances, self._setup.instances_per_node):
            seconds *= 1 + cost
        return seconds

    def _ended(self, now: float, task: Task) -> None:
        plan = task.plan
        assert plan is not None
        assert task.bound_s is not None
        planned = plan.chunks[task.chunk]
        for i in planned.instances:
            self._running[i] = None
        chunk = PlannedChunk(planned.tokens, planned.instances, task.started_s, now)
        task.ran.append(chunk)
        task.chunk += 1
        task.running = False
        late = now - (task.bound_s + planned.end_s + task.late_s)
        if abs(late) > ROUNDING_S:
            self._shift(task, late)
        self._listener.chunk_ended(now, task, chunk)
        if task.chunk < len(plan.chunks):
            if not task.missing[task.chunk]:
                self._start(now, task)
        else:
            self._leave(now, task, plan.instances)

    def _leave(self, now: float, task: Task, members: tuple[int, ...]) -> None:
        """Its chunks are over: its instances turn to their next tasks."""
        ready: list[Task] = []
        for i in members:
            queue = self._queues[i]
            queue.popleft()
            if not queue:
                self._free_at[i] = 0.0
                continue
            if task.expected_s >= self._free_at[i]:
                self._free_at[i] = max(other.expected_s for other in queue)
            head = queue[0]
            joins = head.joins[i]
            head.missing[joins] -= 1
            if not head.missing[joins] and joins == head.chunk and not head.running:
                ready.append(head)
        for head in ready:
            self._start(now, head)

    def _shift(self, task: Task, late: float) -> None:
        """All that stands behind a late chunk on its task's instances will be as late."""
        assert task.plan is not None
        behind = dict.fromkeys(
            t for i in task.plan.instances for t in self._queues[i] if t.seq >= task.seq
        )
        touched = dict.fromkeys(i for t in behind for i in t.joins)
        for other in behind:
            other.expected_s += late
            other.late_s += late
        for i in touched:
            self._free_at[i] = max(other.expected_s for other in self._queues[i])


def _joins(now: float, task: Task, plan: Plan) -> tuple[dict[int, int], list[int]]:
    """Per instance the chunk at which it comes in, and per chunk how many come in."""
    joins: dict[int, int] = {}
    missing: list[int] = []
    for number, chunk in enumerate(plan.chunks):
        known = len(joins)
        for i in chunk.instances:
            joins.setdefault(i, number)
        if len(joins) != len(chunk.instances):
            raise InvariantError(
                now, task.rid, f"chunk {number}'s group {chunk.instances} lacks earlier members"
            )
        missing.append(len(joins) - known)
    if plan.tokens != task.request.prompt_tokens:
        raise InvariantError(
            now, task.rid, f"a plan of {plan.tokens} tokens, not {task.request.prompt_tokens}"
        )
    return joins, missing
