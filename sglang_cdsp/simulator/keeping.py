"""Before decode instances: what homes keep of prompts, and the room that they are promised for it.

As in the server (controller/keeping.py): a home with the room ends with the whole prompt, and has
it cached once decode has all of it; a plan that starts from a cached prefix is promised room for
the whole prompt at its home, which sends the prefix to decode as well. What a home without the room
has of a prompt's beginning is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang_cdsp.planner.memory import kv_demand, pages
from sglang_cdsp.planner.prefixes.keeping import may_keep
from sglang_cdsp.planner.types import Plan, PlannedChunk
from sglang_cdsp.simulator.prefill import PrefillPool
from sglang_cdsp.simulator.prefixes import Prefixes
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.task import Task


class Keeping:
    """The homes of a prefill pool that reuses prefixes."""

    def __init__(
        self, setup: Setup, pool: PrefillPool, prefixes: Prefixes, *, reuses: bool
    ) -> None:
        """`reuses`: the policy's plans may start from cached prefixes; else nothing is kept."""
        self._setup, self._pool, self._prefixes, self._reuses = setup, pool, prefixes, reuses
        prefixes.free, pool.pressed = pool.free, prefixes.press
        prefixes.shared = pool.shared
        pool.demand = self._demand

    def settled(self, task: Task, plan: Plan) -> Plan | None:
        """The plan, once there is room for it; None before.

        The policy counted shares only, also those of what was bound a moment ago.
        """
        need, free = self._need(task), self._pool.free
        kept = may_keep(need, free[plan.home], self._setup.slots)
        task.keeps = bool(plan.reused) or (self._reuses and kept)
        demand = self._slots(plan)
        if plan.reused:
            demand = self._with_home(demand, plan.home, need)
            demand[plan.home] -= self._prefixes.promised_already(task, plan)
        return plan if all(slots <= free[i] for i, slots in demand.items()) else None

    def sent(self, now: float, task: Task) -> None:
        """Decode has the prompt, and the task's slots are free."""
        self._prefixes.sent(now, task)

    def _need(self, task: Task) -> int:
        page = self._setup.page_size
        return pages(task.request.prompt_tokens, page) * page

    def _slots(self, plan: Plan) -> dict[int, int]:
        holders = (plan.home,) if plan.reused else ()
        return kv_demand(plan.placement, self._setup.page_size, plan.reused, holders)

    def _demand(self, task: Task, slots: Mapping[int, int]) -> Mapping[int, int]:
        """What a plan is promised, with what its home keeps."""
        assert task.plan is not None
        return self._with_home(slots, task.plan.home, self._need(task)) if task.keeps else slots

    def _with_home(self, slots: Mapping[int, int], home: int, need: int) -> dict[int, int]:
        return {**slots, home: max(slots[home], need)}


def parts_to_send(plan: Plan, chunk: PlannedChunk, *, first: bool) -> tuple[PlannedChunk, ...]:
    """What goes to decode when a chunk has ended; with the first one the cached prefix, from home.

    Returns:
        The parts, as chunks of those that send them.
    """
    if not (first and plan.reused):
        return (chunk,)
    return (PlannedChunk(plan.reused, (plan.home,), chunk.start_s, chunk.end_s), chunk)
