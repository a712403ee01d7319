"""The instances as the planner needs them: how long each is busy, how many slots are free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_cdsp.controller.decode_shares import DecodeShares
from sglang_cdsp.controller.rings import Ring
from sglang_cdsp.controller.shared_slots import SharedSlots
from sglang_cdsp.planner.rests import Placed, seen_by_rest
from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import Passable, Plan, PlannedChunk, PoolView, Running

# SGLang's own health checks and warm-up requests run beside the pool's accounting.
RESERVE_TOKENS = 64


@dataclass
class _Bound:
    """A plan in force: when its chunks should end, and until when it keeps which instance busy.

    Attributes:
        due_s: expected end of each chunk, moved along with delays.
        ends_s: per instance, the expected end of the plan there; empty once it is computed.
        own_s: what its chunks take in all, seconds.
        arrival_s: when its request arrived.
        delayed_s: by how much prompts that passed have put it off.
        ring: its running chunk, None between chunks and for what does not give way.
        decodes: SGLang itself runs the request.
        tokens_left: what is reckoned to come of its output, where it decodes here.
        prefix: the cached prefix that it starts from, whose slots others may share.
    """

    seq: int
    due_s: list[float]
    ends_s: dict[int, float]
    slots: dict[int, int]
    own_s: float
    passes: bool
    arrival_s: float
    delayed_s: float = 0.0
    ring: Ring | None = None
    decodes: bool = False
    tokens_left: Callable[[], int] | None = None
    prefix: SharedSlots | None = None


@dataclass
class InstanceLedger:
    """Queue times and promised KV slots of every instance.

    Attributes:
        capacity: KV slots per instance, in tokens.
        page_size: tokens per KV page.
        instances_per_node: for the planner's locality rule.
        layers: of the model; a chunk gives way before each.
        preempt_budget: share of its own time by which a plan may be delayed by those that pass.
        decode: what decode gets of an instance beside a chunk.
        unplanned: how many prompts wait that have no plan.
    """

    capacity: tuple[int, ...]
    page_size: int
    instances_per_node: int
    layers: int = 32
    preempt_budget: float = 0.0
    decode: DecodeShares = field(default_factory=lambda: DecodeShares(0.0, None))
    unplanned: Callable[[], int] = lambda: 0
    _bound: dict[int, _Bound] = field(default_factory=dict)
    _taken: dict[int, int] = field(default_factory=dict)
    _absent: set[int] = field(default_factory=set)
    _coming: dict[int, tuple[int, int]] = field(default_factory=dict)
    _copies: dict[int, tuple[int, int]] = field(default_factory=dict)
    _roles: Roles | None = None

    @property
    def roles(self) -> Roles:
        """Who takes chunks and who decodes."""
        return self._roles or Roles.all_both(len(self.capacity))

    def take_roles(self, roles: Roles) -> None:
        """The seats have these roles from now on; what is bound stays bound."""
        self._roles = roles

    @property
    def closed(self) -> frozenset[int]:
        """Instances on which the policy plans nothing: absent ones, and those that only decode."""
        return frozenset(range(len(self.capacity))) - self.roles.prefill | self.absent

    @property
    def absent(self) -> frozenset[int]:
        """Instances on which nothing is planned."""
        return frozenset(self._absent)

    def leaves(self, instance: int) -> None:
        """Nothing more is planned on an instance; what is bound there stays bound."""
        self._absent.add(instance)

    def comes(self, instance: int) -> None:
        """An instance takes part from now on."""
        self._absent.discard(instance)

    def emptied(self, instance: int) -> None:
        """An instance's process has ended: nothing is left there of what was bound."""
        for bound in self._bound.values():
            bound.slots.pop(instance, None)
            bound.ends_s.pop(instance, None)
        self._taken.pop(instance, None)
        self.decode.gone(instance)

    def bind(
        self,
        seq: int,
        plan: Plan,
        now_s: float,
        slots: dict[int, int],
        arrival_s: float | None = None,
        tokens_left: Callable[[], int] | None = None,
        prefix: SharedSlots | None = None,
    ) -> None:
        """Promise ``slots`` per instance to a plan; its last group is busy until it ends.

        Args:
            arrival_s: when its request arrived; now if not given.
            tokens_left: what is reckoned to come of its output, whenever asked; None where a
                decode server has it next.
            prefix: the cached prefix that it starts from, which counts once for all who share it.
        """
        due = [now_s + chunk.end_s for chunk in plan.chunks]
        ends = dict.fromkeys(plan.instances, due[-1])
        if plan.passes:
            self._put_off(plan.instances, now_s, due[-1])
        arrived_s = now_s if arrival_s is None else arrival_s
        self._bound[seq] = _Bound(
            seq,
            due,
            ends,
            dict(slots),
            plan.seconds,
            plan.passes,
            arrived_s,
            tokens_left=tokens_left,
            prefix=prefix,
        )

    def rebind(self, seq: int, ran: int, rest: Plan, now_s: float, slots: dict[int, int]) -> None:
        """Put a plan in force for the rest of a task between two chunks.

        What stands behind the task is as much sooner or later as the task will end.

        Args:
            ran: its chunks that ran.
            rest: the plan for what follows, times from now.
            slots: what it is promised per instance from now on, what it holds included.
        """
        bound = self._bound[seq]
        due = [now_s + chunk.end_s for chunk in rest.chunks]
        later_s = due[-1] - bound.due_s[-1]
        for other in [bound] if bound.passes else self._behind(bound):
            _shift(other, later_s)
        bound.due_s = [*bound.due_s[:ran], *due]
        bound.ends_s = dict.fromkeys(rest.instances, due[-1])
        bound.slots = dict(slots)
        bound.passes = rest.passes

    def due_s(self, seq: int) -> float:
        """When a task's last chunk is expected to end, by the controller's clock."""
        return self._bound[seq].due_s[-1]

    def view_of_rest(self, seq: int, placed: Placed, now_s: float) -> PoolView:
        """The pool as the planner sees it for the rest of a task, as if that were not bound."""
        mine = self._bound[seq]
        before = dict.fromkeys(mine.ends_s, now_s)
        later: set[int] = set()
        alone = self._alone(mine)
        for other in self._bound.values():
            if other is mine or other.passes:
                continue
            if other.seq > seq:
                later.update(other.ends_s)
                continue
            for i in before.keys() & other.ends_s.keys():
                before[i] = max(before[i], other.ends_s[i])
        return seen_by_rest(
            self.view(now_s),
            placed,
            {i: alone.get(i, 0) for i in mine.ends_s},
            lambda i: before[i] - now_s,
            lambda i: i not in later,
        )

    def started(self, seq: int, chunk: PlannedChunk, now_s: float) -> None:
        """A chunk was started that gives way at its layers.

        Nobody passes a plan that promises no time, as a probe's does: a delay is judged as a share
        of it.
        """
        bound = self._bound.get(seq)
        if bound is not None and not bound.passes and bound.own_s > 0.0:
            seconds = chunk.end_s - chunk.start_s
            bound.ring = Ring(chunk.instances, now_s, seconds, self.layers)

    def _put_off(self, group: Sequence[int], now_s: float, end_s: float) -> None:
        """A plan passes what runs on ``group`` until ``end_s``: that and all behind it is late."""
        for bound in list(self._bound.values()):
            ring = bound.ring
            if ring is not None and set(ring.group) & set(group):
                delay_s = ring.put_off(group, now_s, end_s)
                for other in self._behind(bound):
                    other.delayed_s += delay_s
                    _shift(other, delay_s)

    def _behind(self, bound: _Bound) -> list[_Bound]:
        """A plan, and what stands behind it on its instances."""
        instances = set(bound.ends_s)
        return [
            other
            for other in self._bound.values()
            if other.seq >= bound.seq and not other.passes and instances & set(other.ends_s)
        ]

    def computed(self, seq: int) -> None:
        """A task's chunks are over: its instances are free, its slots not yet."""
        if seq in self._bound:
            self._bound[seq].ends_s.clear()
            self._bound[seq].ring = None

    def release(self, seq: int) -> None:
        """A task's slots are free again."""
        self._bound.pop(seq, None)

    def keep_only(self, seq: int, instance: int) -> None:
        """A task's slots are free again but for those of one instance, which decodes it."""
        if seq in self._bound:
            bound = self._bound[seq]
            bound.slots = {instance: bound.slots[instance]}
            bound.decodes = True

    def decodes(self, seq: int) -> None:
        """SGLang itself runs the request: what it really holds is told by its instance."""
        if seq in self._bound:
            self._bound[seq].decodes = True

    def moves(self, seq: int, instance: int, tokens: int) -> None:
        """A request that SGLang runs is on its way to an instance, which keeps slots for it."""
        self._coming[seq] = (instance, tokens)

    def moved(self, seq: int) -> None:
        """It has arrived: its slots there are its own, as those that it has left still are."""
        instance, tokens = self._coming.pop(seq)
        if seq in self._bound:
            self._bound[seq].slots[instance] = tokens

    def not_moved(self, seq: int) -> None:
        """It does not come: nothing is kept for it any more."""
        self._coming.pop(seq, None)

    def left(self, seq: int, instance: int) -> None:
        """A request has nothing on an instance any more."""
        if seq in self._bound:
            self._bound[seq].slots.pop(instance, None)

    def copies(self, number: int, instance: int, tokens: int) -> None:
        """A cached prefix is on its way to an instance, which keeps slots for it."""
        self._copies[number] = (instance, tokens)

    def copied(self, number: int) -> None:
        """It has arrived, and is cached for nobody, or does not come: nothing is kept for it."""
        self._copies.pop(number, None)

    def freeness(self, instance: int, free: Sequence[int], cached: int = 0) -> float:
        """Free slots for each request that would decode on an instance, one more among them.

        Slots that are promised, to requests on their way too, are not free (Llumnix's virtual
        usage, as Tetris routes to decode, section 4). What is cached there of the one more is free
        as long as nobody uses it, and the request needs no other slots for it: it counts twice.

        Args:
            free: KV slots promised to nobody, by instance.
            cached: tokens of the one more that the instance has cached.
        """
        return (free[instance] + cached) / (1 + self.decoding(instance))

    def taken(self, instance: int, tokens: int, step_s: float | None = None) -> None:
        """An instance tells what requests hold there that SGLang itself runs, in KV slots.

        Args:
            step_s: what a decode step of theirs takes, seconds, None where none has run.
        """
        self._taken[instance] = tokens
        if step_s is not None:
            self.decode.stepped(instance, step_s)

    def decoding(self, instance: int) -> int:
        """How many requests SGLang itself runs on an instance, or is about to, by the plans."""
        runs = sum(1 for b in self._bound.values() if b.decodes and instance in b.slots)
        return runs + sum(1 for target, _ in self._coming.values() if target == instance)

    def ended(self, seq: int, chunk: int, at_s: float) -> None:
        """A chunk ended: as late as it was, so late will be all that stands behind it."""
        bound = self._bound.get(seq)
        if bound is None:
            return
        bound.ring = None
        late_s = at_s - bound.due_s[chunk]
        late = [bound] if bound.passes else self._behind(bound)
        for other in late:
            _shift(other, late_s)

    def free_tokens(self) -> tuple[int, ...]:
        """Slots promised to nobody, in whole pages."""
        free = [capacity - RESERVE_TOKENS for capacity in self.capacity]
        running = [0] * len(free)
        counted: set[SharedSlots] = set()
        # What decodes first: its instance tells of a shared prefix among what is taken.
        for bound in sorted(self._bound.values(), key=lambda bound: not bound.decodes):
            for instance, slots in self._slots_of(bound, counted):
                if bound.decodes:
                    running[instance] += slots
                else:
                    free[instance] -= slots
        for instance, slots in (*self._coming.values(), *self._copies.values()):
            free[instance] -= slots
        for instance, promised in enumerate(running):
            # Output may be longer than was promised for it, and some requests nobody planned.
            free[instance] -= max(promised, self._taken.get(instance, 0))
        return tuple(max(0, tokens // self.page_size * self.page_size) for tokens in free)

    @staticmethod
    def _slots_of(bound: _Bound, counted: set[SharedSlots]) -> Iterator[tuple[int, int]]:
        """What is promised to a plan, without a prefix that was counted for another one."""
        prefix = bound.prefix
        for instance, slots in bound.slots.items():
            if prefix is None or instance != prefix.instance:
                yield instance, slots
            elif prefix in counted:
                yield instance, max(0, slots - prefix.tokens)
            else:
                counted.add(prefix)
                yield instance, slots

    def _alone(self, bound: _Bound) -> dict[int, int]:
        """What of a plan's promised slots nobody else holds, by instance."""
        others = (other for other in self._bound.values() if other is not bound)
        held = {other.prefix for other in others if other.prefix and self._holds(other)}
        return dict(self._slots_of(bound, held))

    @staticmethod
    def _holds(bound: _Bound) -> bool:
        """Whether a plan holds the prefix that it started from."""
        return bound.prefix is not None and bound.prefix.instance in bound.slots

    def prefixes(self, instance: int) -> list[SharedSlots]:
        """The cached prefixes at an instance that bound plans start from, and hold there."""
        return [
            bound.prefix
            for bound in self._bound.values()
            if bound.prefix and bound.prefix.instance == instance and self._holds(bound)
        ]

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
            "absent": sorted(self._absent),
            "roles": [role.value for role in self.roles.seats],
            "decoding": [self.decoding(instance) for instance in range(len(view.queue_s))],
        }

    def up(self) -> tuple[bool, ...] | None:
        """By instance, whether it may be planned on; None if all may."""
        closed = self.closed
        if not closed:
            return None
        return tuple(instance not in closed for instance in range(len(self.capacity)))

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
            up=self.up(),
            capacity_tokens=tuple(
                max(0, (c - RESERVE_TOKENS) // self.page_size * self.page_size)
                for c in self.capacity
            ),
            passable=self._passable(now_s),
            running=self._running(),
        )

    def decode_share(self, group: Sequence[int]) -> float:
        """The decode share of a chunk of a bound plan that starts now on these instances.

        Where the share follows a price, the members have one: by the requests of the one on which
        most decode, and the prompts of the one for which most wait. Prompts without a plan count
        evenly for all instances that take chunks.
        """
        return self._share_of(group, *self._loads())

    def _share_of(self, group: Sequence[int], decoding: Sequence[int], due: Sequence[int]) -> float:
        taking = max(1, len(self.capacity) - len(self.closed))
        waiting = max(due[i] for i in group) + self.unplanned() / taking
        return self.decode.of(group, max(decoding[i] for i in group), waiting)

    def _loads(self) -> tuple[list[int], list[int]]:
        """By instance, the requests that decode there, and the bound plans that are to run."""
        decoding, due = [0] * len(self.capacity), [0] * len(self.capacity)
        for bound in self._bound.values():
            for instance in bound.ends_s:
                due[instance] += 1
            # One in SGLang's own queue decodes when its prefill is over.
            for instance in bound.slots if bound.decodes and not bound.ends_s else ():
                decoding[instance] += 1
        return decoding, due

    def pace(self, group: Iterable[int], share: float) -> float:
        """The fraction of its time that a chunk of a decode share gets on these instances."""
        running = self._running_by_instance()
        return min((self.decode.pace(i, share) for i in group if i in running), default=1.0)

    def _running_by_instance(self) -> dict[int, list[int]]:
        """By instance, what is reckoned to come of the output of each request that decodes."""
        left: dict[int, list[int]] = {}
        for bound in self._bound.values():
            if bound.decodes and bound.tokens_left is not None:
                to_come = bound.tokens_left()
                for instance in bound.slots:
                    left.setdefault(instance, []).append(to_come)
        return left

    def _running(self) -> tuple[Running, ...]:
        """What decodes on each instance; empty where nobody does."""
        left = self._running_by_instance()
        if not left:
            return ()
        loads = self._loads()
        found = []
        for i in range(len(self.capacity)):
            if i not in left:
                found.append(Running())
                continue
            share = self._share_of((i,), *loads)
            found.append(
                Running(
                    len(left[i]),
                    sum(left[i]) / len(left[i]),
                    self.decode.pace(i, share),
                    self.decode.stretch_s(i, share),
                )
            )
        return tuple(found)

    def _passable(self, now_s: float) -> tuple[Passable, ...]:
        """The running chunks that prompts may pass within the budget."""
        if not self.preempt_budget:
            return ()
        return tuple(
            bound.ring.passable(
                now_s,
                bound.own_s,
                now_s - bound.arrival_s,
                min(self.preempt_budget * b.own_s - b.delayed_s for b in self._behind(bound)),
            )
            for bound in self._bound.values()
            if bound.ring is not None
        )


def _shift(bound: _Bound, seconds: float) -> None:
    """A plan ends later, in all its chunks."""
    bound.due_s = [due_s + seconds for due_s in bound.due_s]
    bound.ends_s = {i: end_s + seconds for i, end_s in bound.ends_s.items()}
