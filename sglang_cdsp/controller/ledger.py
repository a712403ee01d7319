"""The instances as the planner needs them: how long each is busy, how many slots are free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_cdsp.planner.types import Plan, PoolView

# SGLang's own health checks and warm-up requests run beside the pool's accounting.
RESERVE_TOKENS = 64


@dataclass
class _Bound:
    """A plan in force: when its chunks should end, and until when it keeps which instance busy.

    Attributes:
        due_s: expected end of each chunk, moved along with delays.
        ends_s: per instance, the expected end of the plan there; empty once it is computed.
    """

    seq: int
    due_s: list[float]
    ends_s: dict[int, float]
    slots: dict[int, int]


@dataclass
class InstanceLedger:
    """Queue times and promised KV slots of every instance.

    Attributes:
        capacity: KV slots per instance, in tokens.
        page_size: tokens per KV page.
        instances_per_node: for the planner's locality rule.
    """

    capacity: tuple[int, ...]
    page_size: int
    instances_per_node: int
    _bound: dict[int, _Bound] = field(default_factory=dict)

    def bind(self, seq: int, plan: Plan, now_s: float, slots: dict[int, int]) -> None:
        """Promise ``slots`` per instance to a plan; its last group is busy until it ends."""
        due = [now_s + chunk.end_s for chunk in plan.chunks]
        ends = dict.fromkeys(plan.instances, due[-1])
        self._bound[seq] = _Bound(seq, due, ends, dict(slots))

    def computed(self, seq: int) -> None:
        """A task's chunks are over: its instances are free, its slots not yet."""
        if seq in self._bound:
            self._bound[seq].ends_s.clear()

    def release(self, seq: int) -> None:
        """A task's slots are free again."""
        self._bound.pop(seq, None)

    def ended(self, seq: int, chunk: int, at_s: float) -> None:
        """A chunk ended: as late as it was, so late will be all that stands behind it."""
        bound = self._bound.get(seq)
        if bound is None:
            return
        late_s = at_s - bound.due_s[chunk]
        instances = set(bound.ends_s)
        for other in self._bound.values():
            if other.seq >= seq and instances & set(other.ends_s):
                other.due_s = [due_s + late_s for due_s in other.due_s]
                other.ends_s = {i: end_s + late_s for i, end_s in other.ends_s.items()}

    def free_tokens(self) -> tuple[int, ...]:
        """Slots promised to nobody, in whole pages."""
        free = [capacity - RESERVE_TOKENS for capacity in self.capacity]
        for bound in self._bound.values():
            for instance, slots in bound.slots.items():
                free[instance] -= slots
        return tuple(max(0, tokens // self.page_size * self.page_size) for tokens in free)

    @property
    def smallest_instance(self) -> int:
        """Tokens that every instance can hold for a request."""
        return min(self.capacity) - RESERVE_TOKENS

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """The instances for status pages, JSON-ready."""
        view = self.view(now_s)
        return {
            "instances": len(view.queue_s),
            "queue_s": list(view.queue_s),
            "free_tokens": list(view.free_tokens or ()),
            "capacity_tokens": list(view.capacity_tokens or ()),
        }

    def view(self, now_s: float) -> PoolView:
        """The pool as the planner sees it now."""
        queue = [0.0] * len(self.capacity)
        for bound in self._bound.values():
            for instance, end_s in bound.ends_s.items():
                queue[instance] = max(queue[instance], end_s - now_s)
        return PoolView(
            queue_s=tuple(queue),
            free_tokens=self.free_tokens(),
            instances_per_node=self.instances_per_node,
            capacity_tokens=tuple(
                max(0, (c - RESERVE_TOKENS) // self.page_size * self.page_size)
                for c in self.capacity
            ),
        )
