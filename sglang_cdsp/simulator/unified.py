"""LoongServe's own form: requests decode on the instances that prefilled them.

After prefill a request's group is scaled down to the fewest members that hold its KV and its
output, the emptiest first, and they decode it; the ring has left the KV there (proactive
migration), so nothing is sent. What decode holds, prefill does not get until the last request
there has ended. KV lies at token granularity, in whole pages, anywhere in the group.

So far this is LoongServe as the Tetris paper runs it, one request at a time: what is taken for
decode shows in TTFT, and decode runs on few instances. With `unified_merge` a request moves to the
freest decode group that has the room, whose instances are taken anyway: its KV goes over the links
and its own instances are free again. That is LoongServe's wish to keep the fewest instances in
decode, taken to its end: better TTFT, worse TBT. Scaling up and pre-empting decode are left out.

A request whose output does not fit beside its prompt decodes on its whole group all the same, the
output's last tokens uncounted: waiting for more instances while holding some could wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_cdsp.planner.memory import pages
from sglang_cdsp.simulator.decode import Batch
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.links import Links
from sglang_cdsp.simulator.prefill import PrefillPool
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.task import Task


@dataclass(eq=False)
class _Group:
    """A decode group: its instances, the batch that they run, and how many requests are in it."""

    instances: tuple[int, ...]
    batch: Batch
    tasks: int = 0


class UnifiedDecode:
    """Decode groups inside the prefill pool."""

    def __init__(
        self,
        setup: Setup,
        agenda: Agenda,
        pool: PrefillPool,
        links: Links,
        ended: Callable[[float, Task], None],
    ) -> None:
        """`ended(now, task)` hears of last tokens."""
        self._setup, self._agenda, self._pool = setup, agenda, pool
        self._links, self._ended = links, ended
        self._groups: list[_Group] = []
        self._of: dict[Task, tuple[_Group, dict[int, int]]] = {}
        self._busy_s = [0.0] * setup.instances

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Seconds of decode per instance, by groups that have ended."""
        return tuple(self._busy_s)

    def place(self, now: float, task: Task) -> None:
        """The request's prefill is over: find its decode group and move there."""
        assert task.plan is not None
        members = task.plan.instances
        group = self._freest(task.total_tokens) if self._setup.unified_merge else None
        if group is None:
            self._pool.release(now, task)
            group = self._scale_down(now, task, members)
            self._enter(now, group, task)
            self.arrived(now, task)
        else:
            self._enter(now, group, task)
            size = task.request.prompt_tokens * self._setup.kv_bytes_per_token
            self._links.start(now, task, size, members, group.instances)

    def arrived(self, now: float, task: Task) -> None:
        """Its KV is where it decodes."""
        task.transferred_s = now
        self._pool.release(now, task)
        if task.request.output_tokens == 1:
            self._end(now, task)
        else:
            self._of[task][0].batch.join(now, task)

    def check_empty(self, now: float, rid: str) -> None:
        """No group is left."""
        if self._groups or self._of:
            raise InvariantError(now, rid, f"{len(self._groups)} decode groups are left at the end")

    def _freest(self, need: int) -> _Group | None:
        best, freeness = None, -1.0
        for group in self._groups:
            free = sum(self._pool.free[i] for i in group.instances)
            here = free / max(1, group.tasks)
            if free >= need and here > freeness:
                best, freeness = group, here
        return best

    def _scale_down(self, now: float, task: Task, members: Sequence[int]) -> _Group:
        """The fewest members that hold the request, now taken from prefill."""
        free = self._pool.free
        taken: list[int] = []
        for i in sorted(members, key=lambda i: -free[i]):
            if not self._pool.up[i]:
                raise InvariantError(now, task.rid, f"instance {i} decodes in two groups")
            taken.append(i)
            if sum(free[j] for j in taken) >= task.total_tokens:
                break
        for i in taken:
            self._pool.up[i] = False
        batch = Batch(self._agenda, self._setup.decode, self._end, len(taken))
        group = _Group(tuple(taken), batch)
        self._groups.append(group)
        return group

    def _enter(self, now: float, group: _Group, task: Task) -> None:
        """Slots for prompt and output, the emptiest instances first."""
        page = self._setup.page_size
        left = pages(task.total_tokens, page) * page
        slots: dict[int, int] = {}
        for i in sorted(group.instances, key=lambda i: -self._pool.free[i]):
            slots[i] = min(left, self._pool.free[i])
            left -= slots[i]
        self._pool.take(now, task, slots)
        self._of[task] = group, slots
        group.tasks += 1
        task.decode_instance = group.instances[0]

    def _end(self, now: float, task: Task) -> None:
        group, slots = self._of.pop(task)
        self._pool.give(now, task, slots)
        group.tasks -= 1
        if not group.tasks:
            self._groups.remove(group)
            for i in group.instances:
                self._pool.up[i] = True
                self._busy_s[i] += group.batch.busy_s
        self._ended(now, task)
