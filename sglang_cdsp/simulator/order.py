"""In which order instances run the plans bound to them, and when the pool expects them to be done.

Every instance runs its tasks in the order in which they were bound, and a chunk may start when all
its members have come to it. The expected times are those of a server (controller/ledger.py): a
chunk that ends late makes all that stands behind it as late.
"""

from __future__ import annotations

from collections import deque

from sglang_cdsp.planner.types import Plan
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.task import Task


class BindingOrder:
    """The tasks at each instance, first the one that it runs. Prompts that pass are not here.

    free_at: when each instance is expected to have done what is bound to it; 0 if nothing is.
    """

    def __init__(self, instances: int) -> None:
        self.queues: list[deque[Task]] = [deque() for _ in range(instances)]
        self.free_at = [0.0] * instances

    def add(self, now: float, task: Task, plan: Plan) -> None:
        """Put the task behind what its instances have to do."""
        task.joins, task.missing = joins(now, task, plan)
        free_at, end = self.free_at, task.expected_s
        for i in plan.instances:
            queue = self.queues[i]
            if not queue:
                task.missing[task.joins[i]] -= 1
            queue.append(task)
            if end > free_at[i]:
                free_at[i] = end

    def leave(self, task: Task, members: tuple[int, ...]) -> list[Task]:
        """Take the task away, the first at all these; the tasks that may start their next chunk."""
        ready: list[Task] = []
        for i in members:
            queue = self.queues[i]
            queue.popleft()
            if not queue:
                self.free_at[i] = 0.0
                continue
            if task.expected_s >= self.free_at[i]:
                self.free_at[i] = max(other.expected_s for other in queue)
            head = queue[0]
            joins = head.joins[i]
            head.missing[joins] -= 1
            if not head.missing[joins] and joins == head.chunk and not head.running:
                ready.append(head)
        return ready

    def ready(self, instances: list[int]) -> list[Task]:
        """The first tasks at these instances whose next chunk may start, each once."""
        heads = dict.fromkeys(self.queues[i][0] for i in instances if self.queues[i])
        return [task for task in heads if not task.running and not task.missing[task.chunk]]

    def behind(self, task: Task) -> list[Task]:
        """The task and those that stand behind it on an instance of its plan."""
        assert task.plan is not None
        return list(
            dict.fromkeys(
                other
                for i in task.plan.instances
                for other in self.queues[i]
                if other.seq >= task.seq
            )
        )

    def shift(self, task: Task, late: float) -> None:
        """All that stands behind a late chunk on its task's instances will be as late."""
        behind = self.behind(task)
        touched = dict.fromkeys(i for t in behind for i in t.joins)
        for other in behind:
            other.expected_s += late
            other.late_s += late
        for i in touched:
            self.free_at[i] = max(other.expected_s for other in self.queues[i])

    def may_join(self, task: Task, i: int) -> bool:
        """Whether the rest of a running task may take the instance into its plan.

        Behind a task that was bound later it could wait for one that waits for it.
        """
        return all(other.seq <= task.seq for other in self.queues[i])

    def replace(self, now: float, task: Task, plan: Plan) -> list[Task]:
        """Give a task between two chunks another plan for the rest, chunks that ran included.

        Returns the tasks that may start their next chunk where it is not expected any more, each
        once.
        """
        assert task.plan is not None
        old, task.plan = task.plan, plan
        numbers, missing = joins(now, task, plan)
        ready: dict[Task, None] = {}
        for i in old.instances:
            if i in numbers:
                continue
            queue = self.queues[i]
            first = queue[0] is task
            queue.remove(task)
            if first and queue:
                head = queue[0]
                head.missing[head.joins[i]] -= 1
                ready[head] = None
        for i in plan.instances:
            if i not in old.instances:
                self.queues[i].append(task)
            if self.queues[i][0] is task:
                missing[numbers[i]] -= 1
        task.joins, task.missing = numbers, missing
        for i in {*old.instances, *plan.instances}:
            self.free_at[i] = max((other.expected_s for other in self.queues[i]), default=0.0)
        return [head for head in ready if not head.running and not head.missing[head.chunk]]


def joins(now: float, task: Task, plan: Plan) -> tuple[dict[int, int], list[int]]:
    """Per instance the chunk at which it comes in, and per chunk how many come in.

    Raises:
        InvariantError: groups are not nested, or the plan is not for all of the prompt.
    """
    found: dict[int, int] = {}
    missing: list[int] = []
    for number, chunk in enumerate(plan.chunks):
        known = len(found)
        for i in chunk.instances:
            found.setdefault(i, number)
        if len(found) != len(chunk.instances):
            raise InvariantError(
                now, task.rid, f"chunk {number}'s group {chunk.instances} lacks earlier members"
            )
        missing.append(len(found) - known)
    if plan.tokens + plan.reused != task.request.prompt_tokens:
        raise InvariantError(
            now, task.rid, f"a plan of {plan.tokens} tokens, not {task.request.prompt_tokens}"
        )
    return found, missing
