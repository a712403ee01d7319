"""One server: every request gets a home that holds its KV and its output, and decodes there.

As in the server (controller/homes.py), of a plan's first group the member with the most free slots
for each request that decodes there is home; if none has the room, an instance that has it takes a
member's place; else the plan waits, and those behind it wait too. In the last chunk home gathers
what it lacks, which takes no time of its own. Where the group's instances only prefill, home is the
freest instance that decodes, what is cached there of the prompt counted as free: the rest of the KV
leaves for it while the last chunk runs, and the request decodes there when both are over.

Requests decode beside chunks on the same instance: a decode step after each stretch of a chunk
(`Way.BESIDE`), which slows the chunk down as far as the slowest member of its group. A forward of
SGLang's own batches does not give way; decode stands still meanwhile. The slots of the whole output
are promised, where the server promises a half of the longest and retracts in need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sglang_cdsp.planner.forced import GIVEN, timed_plan
from sglang_cdsp.planner.memory import kv_demand, pages
from sglang_cdsp.planner.stretches import chunk_pace, stretch_s
from sglang_cdsp.planner.types import Group, Placement, Plan, Running
from sglang_cdsp.simulator.decode import Batch, Way
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.links import Links
from sglang_cdsp.simulator.one_server import OneServer, Role
from sglang_cdsp.simulator.prefill import PrefillPool
from sglang_cdsp.simulator.prefixes import Prefixes
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.task import Task


class Homes:
    """The decode side of one server.

    Attributes:
        moved_tokens: whose KV went to a home outside the group that prefilled it.
    """

    def __init__(
        self,
        setup: Setup,
        form: OneServer,
        agenda: Agenda,
        pool: PrefillPool,
        links: Links,
        ended: Callable[[float, Task], None],
        prefixes: Prefixes | None = None,
        unplanned: Callable[[], int] = lambda: 0,
    ) -> None:
        """Nobody decodes.

        Args:
            ended: `ended(now, task)` hears of last tokens.
            prefixes: keep what homes have computed.
            unplanned: how many prompts wait that have no plan.
        """
        self._unplanned = unplanned
        self._prefixes = prefixes
        if prefixes is not None:
            prefixes.free, pool.pressed = pool.free, prefixes.press
            prefixes.shared = pool.shared
        self._setup, self._form, self._pool, self._links = setup, form, pool, links
        self._ended = ended
        self._roles = form.of(setup.instances)
        self.moved_tokens = 0
        self._batches = [
            Batch(
                agenda,
                setup.decode,
                self._end,
                changed=partial(self._batch_changed, i),
                overrun_s=form.overrun_s,
            )
            for i in range(setup.instances)
        ]
        self._here = [0] * setup.instances
        self._moving: dict[Task, int] = {}
        pool.up = [role is not Role.DECODE for role in self._roles]
        pool.instances.touched = self._touched
        pool.instances.share_of, pool.instances.pace_at = self._share_of, self._pace_at
        pool.demand, pool.running = self.demand, self.running

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Seconds of decode steps per instance."""
        return tuple(batch.busy_s for batch in self._batches)

    def refusal(self, task: Task) -> str:
        """Why no home can ever hold the request, "" if one can."""
        if self._need(task) <= self._setup.slots:
            return ""
        return (
            f"prompt {task.rid}: prompt and output of {task.total_tokens} tokens do not fit an "
            f"instance of {self._setup.slots} KV slots, and decode reads all in one place"
        )

    def settled(self, now: float, task: Task, plan: Plan) -> Plan | None:
        """The plan with a home that has the room, which is promised; None while there is none."""
        need, group = self._need(task), plan.chunks[0].instances
        free = self._pool.free
        if plan.reused:  # who has the prefix is home, if requests decode there
            home = plan.home
            if self._roles[home] is Role.PREFILL:
                found = self._home_outside(task, need)
                if found is None:
                    return None
                home = found
            if not self._fits(task, plan, home):
                return None
            task.decode_instance = home
            return plan
        if plan.policy == GIVEN:
            home = group[0]
            if not self._fits(task, plan, home):
                return None
            task.decode_instance = home
            return plan
        inside = [i for i in group if self._roles[i] is Role.BOTH]
        able = [i for i in inside if free[i] >= need]
        if able:
            home = self._freest(able)
            first = (home, *(i for i in group if i != home))
            chosen = _with_first(plan, first)
        elif inside:
            if plan.passes:
                return None
            moved = self._exchanged(now, task, plan, need)
            if moved is None:
                return None
            home, chosen = moved
        else:
            found = self._home_outside(task, need)
            if found is None:
                return None
            home, chosen = found, plan
        if not self._fits(task, chosen, home):
            return None
        task.decode_instance = home
        return chosen

    def _home_outside(self, task: Task, need: int) -> int | None:
        """Where a request decodes whose group only prefills; None while no seat has the room."""
        free = self._pool.free
        roomy = [
            i for i, role in enumerate(self._roles) if role is not Role.PREFILL and free[i] >= need
        ]
        cached = self._prefixes.cached(task) if self._prefixes is not None else None
        return self._freest(roomy, cached) if roomy else None

    def demand(self, task: Task, slots: Mapping[int, int]) -> dict[int, int]:
        """What a plan is promised by instance, with what its home needs in the end."""
        home = task.decode_instance
        assert home is not None
        return {**slots, home: max(slots.get(home, 0), self._need(task))}

    def last_chunk_started(self, now: float, task: Task) -> None:
        """Its KV leaves for a home outside its group, layer by layer while the chunk runs."""
        home, plan = task.decode_instance, task.plan
        assert home is not None
        assert plan is not None
        if home in plan.instances:
            return
        self._moving[task] = 2
        there = self._prefixes.there(task) if self._prefixes is not None else 0
        tokens = task.request.prompt_tokens - there
        self.moved_tokens += tokens
        size = tokens * self._setup.kv_bytes_per_token
        self._links.start(now, task, size, plan.instances, (home,))

    def running(self) -> tuple[Running, ...]:
        """What decodes on each instance, as the policy sees it; empty where nobody does.

        The server reckons with what may come of outputs; here that is known.
        """
        if not any(batch.size for batch in self._batches):
            return ()
        return tuple(map(self._running_on, range(len(self._batches))))

    def _running_on(self, i: int) -> Running:
        batch = self._batches[i]
        if not batch.size:
            return Running()
        share, step_s = self._share_of((i,)), batch.step_s
        return Running(
            batch.size, batch.mean_left, chunk_pace(step_s, share), stretch_s(step_s, share)
        )

    def _share_of(self, group: Group) -> float:
        """The decode share of a chunk that starts now there, as controller/ledger.py has it."""
        order, instances = self._pool.order, self._pool.instances
        due = max(len(order.queues[i]) + len(instances.passing(i)) for i in group)
        return self._form.share(
            max(self._here[i] for i in group),
            due + self._unplanned() / sum(self._pool.up),
            max(self._batches[i].step_s for i in group),
        )

    def _pace_at(self, i: int, share: float) -> float:
        """The fraction of an instance's time that a chunk of a decode share gets there now."""
        batch = self._batches[i]
        if not batch.size:
            return 1.0
        stretch = stretch_s(batch.step_s, share) + self._form.overrun_s
        return stretch / (stretch + batch.step_s)

    def place(self, now: float, task: Task) -> None:
        """The request's chunks are over, and its first token is there."""
        if task in self._moving:
            self.arrived(now, task)
        else:
            self._join(now, task)

    def arrived(self, now: float, task: Task) -> None:
        """Its last chunk is over, or its KV is all at home."""
        self._moving[task] -= 1
        if not self._moving[task]:
            del self._moving[task]
            self._join(now, task)

    def check_empty(self, now: float, rid: str) -> None:
        """Nobody decodes."""
        if any(self._here) or self._moving:
            raise InvariantError(now, rid, f"requests decode at the end: {self._here}")

    def _need(self, task: Task) -> int:
        """KV slots that home needs of it in the end."""
        page = self._setup.page_size
        request = task.request
        return (pages(request.prompt_tokens, page) + pages(request.output_tokens, page)) * page

    def _freest(self, instances: Iterable[int], cached: Sequence[int] | None = None) -> int:
        """The one with the most free slots for each request that decodes there.

        ``cached``: tokens of the request by instance, which count as so many more free slots.
        """
        free = self._pool.free

        def freeness(i: int) -> float:
            return (free[i] + (cached[i] if cached else 0)) / (1 + self._here[i])

        return max(instances, key=lambda i: (freeness(i), -i))

    def _exchanged(self, now: float, task: Task, plan: Plan, need: int) -> tuple[int, Plan] | None:
        """The plan with an instance in it that has the room."""
        free, view = self._pool.free, self._pool.view(now)
        roomy = [
            i
            for i, role in enumerate(self._roles)
            if role is Role.BOTH and free[i] >= need and self._pool.up[i]
        ]
        out = plan.chunks[0].instances[0]
        for home in sorted(roomy, key=lambda i: (view.queue_s[i], -free[i] / (1 + self._here[i]))):
            placement = _exchange(plan.placement, out, home)
            anew = replace(timed_plan(placement, self._setup.model, view), policy=plan.policy)
            if self._fits(task, anew, home):
                return home, anew
        return None

    def _fits(self, task: Task, plan: Plan, home: int) -> bool:
        holders = (plan.home,) if plan.reused else ()
        demand = kv_demand(plan.placement, self._setup.page_size, plan.reused, holders)
        demand[home] = max(demand.get(home, 0), self._need(task))
        if plan.reused and home == plan.home and self._prefixes is not None:
            demand[home] -= self._prefixes.promised_already(task, plan)
        return all(slots <= self._pool.free[i] for i, slots in demand.items())

    def _join(self, now: float, task: Task) -> None:
        """It decodes at home; the other members' slots are free."""
        home = task.decode_instance
        assert home is not None
        self._pool.give(now, task, {i: n for i, n in task.slots.items() if i != home})
        task.slots = {home: task.slots[home]}
        task.transferred_s = now
        if self._prefixes is not None:
            self._prefixes.computed(now, task)
        self._here[home] += 1
        if task.request.output_tokens == 1:
            self._end(now, task)
        else:
            self._batches[home].join(now, task)

    def _end(self, now: float, task: Task) -> None:
        assert task.decode_instance is not None
        self._here[task.decode_instance] -= 1
        self._pool.release(now, task)
        if self._prefixes is not None:
            self._prefixes.ended(now, task)
        self._ended(now, task)

    def _touched(self, now: float, instances: Iterable[int]) -> None:
        """What computes there has changed."""
        for i in instances:
            run = self._pool.instances.computing(i)
            if run is None or run.alone:
                self._batches[i].turn(now, Way.ALONE if run is None else Way.STILL)
            else:
                self._batches[i].turn(now, Way.BESIDE, run.share)

    def _batch_changed(self, i: int, now: float) -> None:
        self._pool.instances.pace_changed(now, i)


def _with_first(plan: Plan, first: Group) -> Plan:
    """The plan with its first group in another order."""
    chunks = tuple(
        replace(chunk, instances=first + chunk.instances[len(first) :]) for chunk in plan.chunks
    )
    return replace(plan, chunks=chunks)


def _exchange(placement: Placement, one: int, other: int) -> Placement:
    """A placement in which two instances have changed places."""
    places = {one: other, other: one}
    return tuple(
        (tokens, tuple(places.get(instance, instance) for instance in group))
        for tokens, group in placement
    )
