"""KV slots that several plans hold together: those of a cached prefix that all of them start from.

As in the server (controller/shared_slots.py): a plan is promised all that its home needs, the
cached prefix that it starts from included. One that starts from the same prefix at the same
instance meanwhile uses the same slots, and is promised what it needs beyond them. When the first is
over, the next one is who was promised them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang_cdsp.simulator.task import Task


@dataclass(eq=False)
class _Shared:
    """A cached prefix that plans start from.

    Attributes:
        tokens: how long it is, whole pages.
        tasks: that start from it; the first was promised its slots.
    """

    instance: int
    block: int
    tokens: int
    tasks: list[Task] = field(default_factory=list)


class SharedSlots:
    """The cached prefixes that plans in force start from.

    A prefix is known by its last block, which stands for all before it, and where it is cached.
    """

    def __init__(self) -> None:
        """No plan starts from any."""
        self._shared: dict[tuple[int, int], _Shared] = {}
        self._of: dict[Task, _Shared] = {}

    def promised(self, instance: int, block: int) -> bool:
        """Whether a plan was promised the slots of the prefix at an instance that ends so."""
        return (instance, block) in self._shared

    def join(self, task: Task, instance: int, block: int, tokens: int) -> None:
        """A task's plan starts from a prefix, and is promised its slots if no other plan was."""
        found = self._shared.get((instance, block))
        if found is None:
            found = self._shared[instance, block] = _Shared(instance, block, tokens)
        found.tasks.append(task)
        self._of[task] = found

    def beyond(self, task: Task, slots: Mapping[int, int]) -> Mapping[int, int]:
        """What a task needs by instance, less the slots that another plan was promised."""
        shared = self._of.get(task)
        if shared is None or shared.tasks[0] is task:
            return slots
        return {**slots, shared.instance: slots[shared.instance] - shared.tokens}

    def leave(self, task: Task) -> None:
        """A task holds nothing any more after this: the next one has the slots of the prefix."""
        shared = self._of.pop(task, None)
        if shared is None:
            return
        first = shared.tasks[0] is task
        shared.tasks.remove(task)
        if not shared.tasks:
            del self._shared[shared.instance, shared.block]
        elif first:
            heir, at = shared.tasks[0], shared.instance
            task.slots = {**task.slots, at: task.slots[at] - shared.tokens}
            heir.slots = {**heir.slots, at: heir.slots[at] + shared.tokens}
