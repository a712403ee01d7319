"""The prefill pool: what each instance does, and how the planner sees it.

The pool is shown to the policy as the server shows it (controller/ledger.py): an instance's queue
time reaches to the latest expected end of the plans bound to it, and moves when chunks end early or
late; its free slots are those promised to nobody. Every instance runs its tasks in the order in
which they were bound (order.py); between the layers of a chunk it runs prompts that pass
(instances.py). A prompt on one instance runs alone, where a server's stock SGLang may batch several
short ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from sglang_cdsp.planner.groups import straddles
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Passable, Plan, PlannedChunk, PoolView, Running
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.instances import Instances, Run
from sglang_cdsp.simulator.order import BindingOrder, joins
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.shared_slots import SharedSlots
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
        order: what is bound to which instance. instances: what runs there.
        peak_slots: most KV slots ever promised, per instance.
        pressed: hears of an instance whose slots were promised.
        demand: what a task is promised instead of what its plan needs by itself (one server).
        running: what decodes on each instance, for the policy (one server).
        shared: slots of cached prefixes that several tasks hold.
    """

    def __init__(self, setup: Setup, agenda: Agenda, listener: ChunkListener, noise: Noise) -> None:
        n = setup.instances
        self._setup, self._listener, self._noise = setup, listener, noise
        self._agenda = agenda
        self._model: LatencyModel = setup.true_model or setup.model
        self._rows: dict[int, Coefficients] = {}
        self.capacity = (setup.slots,) * n
        self.free = list(self.capacity)
        self.up = [True] * n
        self.peak_slots = [0] * n
        self.order = BindingOrder(n)
        self.instances = Instances(
            n, setup.layers, agenda, self._ended, self._went_on, self._vacant
        )
        self.demand: Callable[[Task, Mapping[int, int]], Mapping[int, int]] | None = None
        self.running: Callable[[], tuple[Running, ...]] | None = None
        self.pressed: Callable[[int], None] | None = None
        self.shared = SharedSlots()
        self._passing_until = [0.0] * n
        self._bound = 0

    # -- as the policy sees it --------------------------------------------------------------

    def view(self, now: float) -> PoolView:
        """The pool at this moment."""
        free_at = self.order.free_at
        queue = [at - now if at > now else 0.0 for at in free_at]
        if self._setup.unified:
            # Late instances must not look idle: what decode may take next has nothing behind it.
            queue = [
                max(q, LATE_S) if w else q for q, w in zip(queue, self.order.queues, strict=True)
            ]
        seen = PoolView(
            tuple(queue),
            tuple(self.free),
            self._setup.instances_per_node,
            None if all(self.up) else tuple(self.up),
            self.capacity,
            running=self.running() if self.running else (),
        )
        return self._with_passing(now, seen) if self._setup.preempt_budget else seen

    def _with_passing(self, now: float, seen: PoolView) -> PoolView:
        until = self._passing_until
        queue = tuple(
            max(q, at - now) if at > now else q for q, at in zip(seen.queue_s, until, strict=True)
        )
        rings = tuple(self._passable(now, run) for run in self.instances.rings())
        return replace(seen, queue_s=queue, passable=rings)

    def _passable(self, now: float, run: Run) -> Passable:
        layers, until = self._setup.layers, self._passing_until
        asked = run.halts_s < math.inf
        boundary = max(now, run.halts_s if asked else run.boundary_s(now, layers))
        return Passable(
            run.group,
            run.task.own_s,
            now - run.task.request.arrival_s,
            run.left_s(now) / self.instances.pace_of(run),
            boundary - now,
            max(boundary, run.resumes_s) - now if asked else boundary - now,
            max(
                0.0,
                min(self._budget_s(task) for task in self.order.behind(run.task))
                - self._overdue_s(now, run),
            ),
            tuple(until[i] - now if until[i] > now else 0.0 for i in run.group),
        )

    def _budget_s(self, task: Task) -> float:
        """By how much more prompts that pass may delay it."""
        return self._setup.preempt_budget * task.own_s - task.delayed_s

    def _overdue_s(self, now: float, run: Run) -> float:
        """For how long a chunk has stood still beyond what it was charged for."""
        return max(0.0, now - run.resumes_s) if run.halts_s <= now else 0.0

    # -- a task's way -----------------------------------------------------------------------

    def bind(self, now: float, task: Task, plan: Plan) -> None:
        """Promise the plan its slots and put it behind what its instances have to do."""
        task.plan, task.bound_s, task.seq = plan, now, self._bound
        self._bound += 1
        task.expected_s = now + plan.chunks[-1].end_s
        task.own_s = plan.seconds
        if plan.passes:
            self._pass(now, task, plan)
            return
        self.order.add(now, task, plan)
        self._promise(now, task, plan)
        if plan.copy is not None:
            # Its first chunk waits for one more: what it starts from.
            task.missing[0] += 1
            self._agenda.at(now + plan.copy.seconds, self._copied, task)
        if not task.missing[0]:
            self._start(now, task)

    def _copied(self, now: float, task: Task) -> None:
        """The prefix that a task starts from has come to its home."""
        task.missing[0] -= 1
        if not task.missing[0]:
            self._start(now, task)

    def rebind(self, now: float, task: Task, plan: Plan, slots: Mapping[int, int]) -> None:
        """Another plan for what is left of a task between two chunks, and what it then holds.

        `plan` starts with the chunks that ran; its times are from when the task was bound.
        """
        assert task.bound_s is not None
        self.give(now, task, task.slots)
        task.slots = self._demand(task, slots)
        self.take(now, task, task.slots)
        sooner = task.bound_s + plan.chunks[-1].end_s - task.expected_s
        task.late_s = -sooner  # `shift` adds it again
        self.order.shift(task, sooner)
        for head in self.order.replace(now, task, plan):
            self._start(now, head)

    def release(self, now: float, task: Task) -> None:
        """All its KV is elsewhere: the promised slots are free, but what others share of them."""
        self.shared.leave(task)
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
            if self.pressed is not None:
                self.pressed(i)

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
        if (
            any(self.order.queues)
            or any(map(self.instances.taken, range(len(self.free))))
            or tuple(self.free) != self.capacity
        ):
            raise InvariantError(now, rid, f"the pool is not empty at the end: free {self.free}")

    def _promise(self, now: float, task: Task, plan: Plan) -> None:
        holders = (plan.home,) if plan.reused else ()
        slots = kv_demand(plan.placement, self._setup.page_size, plan.reused, holders)
        task.slots = self._demand(task, slots)
        self.take(now, task, task.slots)

    def _demand(self, task: Task, slots: Mapping[int, int]) -> Mapping[int, int]:
        """What a task is promised whose plan by itself needs these slots."""
        whole = self.demand(task, slots) if self.demand else slots
        return self.shared.beyond(task, whole)

    def _pass(self, now: float, task: Task, plan: Plan) -> None:
        """Let the plan's one chunk pass; whom it delays is charged for it at once."""
        joins(now, task, plan)
        if len(plan.chunks) > 1:
            raise InvariantError(now, task.rid, f"passes with {len(plan.chunks)} chunks, not one")
        self._promise(now, task, plan)
        group, end = plan.instances, task.expected_s
        for ring in self.instances.rings():
            if not set(ring.group).isdisjoint(group):
                self._put_off(now, task, ring, end)
        for i in group:
            self._passing_until[i] = max(self._passing_until[i], end)
        run = self._run(task, plan.chunks[0])
        self.instances.let_pass(now, run, (plan.seconds, task.seq))
        self._listener.chunk_started(now, task)  # at most some layers too early

    def may_pass(self, now: float, plan: Plan) -> bool:
        """Whether those that a plan passes, and those behind them, can still bear the delay.

        Others may stand behind them since the plan was made.
        """
        end = now + plan.chunks[-1].end_s
        rings = [r for r in self.instances.rings() if not set(r.group).isdisjoint(plan.instances)]
        total = sum([self._delay_s(now, ring, end) for ring in rings])
        return all(
            total <= self._budget_s(other) - self._overdue_s(now, ring) + ROUNDING_S
            for ring in rings
            for other in self.order.behind(ring.task)
        )

    def _delay_s(self, now: float, ring: Run, end: float) -> float:
        """By how much later a ring goes on that does so only at `end`."""
        return max(0.0, end - self._goes_on_s(now, ring))

    def _goes_on_s(self, now: float, ring: Run) -> float:
        if ring.halts_s < math.inf:
            return max(now, ring.resumes_s)
        return ring.boundary_s(now, self._setup.layers)

    def _put_off(self, now: float, task: Task, ring: Run, end: float) -> None:
        """A ring goes on only at `end`: charge its prompt and those behind it."""
        overdue = self._overdue_s(now, ring)
        if overdue > ROUNDING_S:
            self._delayed(ring.task, overdue)
        delay = self._delay_s(now, ring, end)
        ring.resumes_s = max(self._goes_on_s(now, ring), end)
        for other in self.order.behind(ring.task):
            if delay > self._budget_s(other) + ROUNDING_S:
                left = max(0.0, self._budget_s(other))
                raise InvariantError(
                    now, task.rid, f"delays {other.rid} by {delay:.6f} s of {left:.6f} s left"
                )
        self._delayed(ring.task, delay)

    def _delayed(self, task: Task, seconds: float) -> None:
        """A task and those behind it are later than was expected, for prompts that pass."""
        for other in self.order.behind(task):
            other.delayed_s += seconds
        self.order.shift(task, seconds)

    def _start(self, now: float, task: Task) -> None:
        assert task.plan is not None
        number = task.chunk
        chunk = task.plan.chunks[number]
        if any(map(self.instances.taken, chunk.instances)):
            return  # `_vacant` starts it
        for i in chunk.instances:
            if not self.up[i]:
                raise InvariantError(now, task.rid, f"instance {i} decodes")
        task.running = True
        self.instances.start(now, self._run(task, chunk))
        self._listener.chunk_started(now, task)

    def _run(self, task: Task, chunk: PlannedChunk) -> Run:
        form = self._setup.one_server
        alone = form is not None and len(chunk.instances) == 1 and form.is_stock(task.request)
        return Run(task, chunk.instances, self._seconds(task, chunk), alone=alone)

    def _seconds(self, task: Task, chunk: PlannedChunk) -> float:
        """What the chunk really takes."""
        assert task.plan is not None
        history = task.plan.reused + sum(before.tokens for before in task.ran)
        return self._believed_s(history, chunk) * self._noise(task.order, task.chunk)

    def _believed_s(self, history: int, chunk: PlannedChunk) -> float:
        """The true model's time, more if the group straddles nodes."""
        size = len(chunk.instances)
        row = self._rows.get(size)
        if row is None:
            row = self._rows[size] = self._model.coefficients(size)
        seconds = row.predict(history, chunk.tokens)
        cost = self._setup.straddle_cost
        if cost and straddles(chunk.instances, self._setup.instances_per_node):
            seconds *= 1 + cost
        return seconds

    def _ended(self, now: float, run: Run) -> None:
        task = run.task
        plan = task.plan
        assert plan is not None
        assert task.bound_s is not None
        planned = plan.chunks[task.chunk]
        chunk = PlannedChunk(planned.tokens, planned.instances, run.started_s, now)
        task.ran.append(chunk)
        task.stood_s.append(run.stood_s)
        task.slowed_s.append(run.slowed_s)
        task.chunk += 1
        if plan.passes:
            for i in plan.instances:
                if not self.instances.taken(i):
                    self._passing_until[i] = 0.0
            self._listener.chunk_ended(now, task, chunk)
            return
        task.running = False
        late = now - (task.bound_s + planned.end_s + task.late_s)
        if abs(late) > ROUNDING_S:
            self.order.shift(task, late)
        self._listener.chunk_ended(now, task, chunk)
        plan = task.plan  # which the listener may have replaced
        assert plan is not None
        if task.chunk < len(plan.chunks):
            if not task.missing[task.chunk]:
                self._start(now, task)
        else:
            for head in self.order.leave(task, plan.instances):
                self._start(now, head)

    def _went_on(self, now: float, run: Run) -> None:
        """A ring goes on: was it delayed by as much as it was charged for?"""
        late = now - run.resumes_s
        if abs(late) > ROUNDING_S:
            self._delayed(run.task, late)

    def _vacant(self, now: float, instances: list[int]) -> None:
        """Nobody passes there any more: the next task may start."""
        for head in self.order.ready(instances):
            self._start(now, head)
