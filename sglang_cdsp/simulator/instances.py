"""What instances compute: chunks, and between their layers the prompts that pass them.

An instance runs one chunk. A prompt that passes asks the chunks on its group to stand still, which
they do at their next layer boundary, the whole SP group each: a ring waits for its slowest member.
It starts when all its members are there and runs to its end; of several that wait at an instance
the one that needs the fewest seconds goes first. Then the chunks go on. Nobody passes a prompt that
passes.

Where decode runs beside, a chunk gets a part of each instance, its *pace*, which follows from the
chunk's decode share; a ring goes on at the least of its members' paces, for their decode steps fall
into the time in which it waits anyway. A forward of SGLang's own batches runs alone.

All members know one order of those that wait, so that none holds what another waits for: the first
in that order starts as soon as its members have ended what they serve.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sglang_cdsp.planner.types import Group
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.task import Task

ROUNDING = 1e-9
"""Of a layer: this close to a boundary is at the boundary."""


@dataclass(slots=True, eq=False)
class Run:
    """A chunk on its group. Times are absolute; inf = not known yet.

    Attributes:
        seconds: what it computes, alone on its instances. done_s: of these, what it had computed
            when it last stood still or changed its pace.
        alone: it shares its instance with nobody while it runs.
        share: of its instances' time, for decode beside it; known when it starts.
        pace: the fraction of its instances' time that it gets.
        started_s: when it started. since_s: when it last went on or changed its pace.
        ends_s: when it ends; inf while it stands still or has not started.
        halts_s: the layer boundary at which it stands still or will; inf if nobody asked.
        resumes_s: when it is expected to go on then.
        stood_s: seconds that it has stood still, until it last went on.
        slowed_s: seconds that others than those that pass have had of its time.
    """

    task: Task
    group: Group
    seconds: float
    started_s: float = math.inf
    since_s: float = math.inf
    ends_s: float = math.inf
    done_s: float = 0.0
    halts_s: float = math.inf
    resumes_s: float = 0.0
    stood_s: float = 0.0
    alone: bool = False
    share: float = 0.0
    pace: float = 1.0
    slowed_s: float = 0.0

    @property
    def still(self) -> bool:
        """Whether it stands still between two layers."""
        return self.started_s < math.inf and self.ends_s == math.inf

    def left_s(self, now: float) -> float:
        """What it still has to compute."""
        since = 0.0 if self.still else (now - self.since_s) * self.pace
        return self.seconds - self.done_s - since

    def boundary_s(self, now: float, layers: int) -> float:
        """Its next layer boundary, now or later; its end after the last layer."""
        if self.still:
            return now
        layer = self.seconds / layers
        number = math.ceil((self.seconds - self.left_s(now)) / layer - ROUNDING)
        if number >= layers:
            return self.ends_s
        return max(now, self.since_s + (number * layer - self.done_s) / self.pace)


Order = tuple[float, int]
"""Place among those that wait to pass: seconds, then when they were bound."""


@dataclass(slots=True)
class Instances:
    """The instances 0..count-1.

    Attributes:
        layers: boundaries of a chunk, its start and those between its layers.
        ended: called with the time and the run that ended.
        went_on: called with the time and a chunk that goes on after it stood still.
        vacant: called with the time and instances where nothing runs after one passed.
        touched: called with the time and instances where something else computes than before.
        share_of: the decode share of a chunk that starts now on a group.
        pace_at: the fraction of an instance's time that a chunk of a decode share gets there now.
        running: the chunk at each instance. serving: the prompt that passes it.
        busy_s: seconds each instance has computed.
    """

    count: int
    layers: int
    agenda: Agenda
    ended: Callable[[float, Run], None]
    went_on: Callable[[float, Run], None]
    vacant: Callable[[float, list[int]], None]
    touched: Callable[[float, Iterable[int]], None] | None = None
    share_of: Callable[[Group], float] | None = None
    pace_at: Callable[[int, float], float] | None = None
    running: list[Run | None] = field(init=False)
    serving: list[Run | None] = field(init=False)
    busy_s: list[float] = field(init=False)
    _waiting: list[list[tuple[Order, Run]]] = field(init=False)

    def __post_init__(self) -> None:
        self.running = [None] * self.count
        self.serving = [None] * self.count
        self.busy_s = [0.0] * self.count
        self._waiting = [[] for _ in range(self.count)]

    def taken(self, i: int) -> bool:
        """Whether a prompt passes at the instance, or waits to."""
        return self.serving[i] is not None or bool(self._waiting[i])

    def passing(self, i: int) -> Sequence[Run]:
        """Those that pass at the instance, and those that wait to."""
        serving = self.serving[i]
        return [*([serving] if serving else []), *(run for _, run in self._waiting[i])]

    def computing(self, i: int) -> Run | None:
        """What computes at the instance now."""
        for run in (self.serving[i], self.running[i]):
            if run is not None and run.since_s < math.inf and not run.still:
                return run
        return None

    def pace_changed(self, now: float, i: int) -> None:
        """A chunk gets another fraction of the instance from now on."""
        run = self.computing(i)
        if run is not None and run.ends_s > now:
            self._pace(now, run)

    def rings(self) -> list[Run]:
        """The chunks that run or stand still, each once."""
        return list(dict.fromkeys(run for run in self.running if run is not None))

    def start(self, now: float, run: Run) -> None:
        """A chunk starts on instances where nobody runs.

        Raises:
            InvariantError: somebody does.
        """
        for i in run.group:
            other = self.running[i] or self.serving[i]
            if other is not None:
                raise InvariantError(now, run.task.rid, f"instance {i} still runs {other.task.rid}")
            self.running[i] = run
        self._go(now, run)

    def let_pass(self, now: float, run: Run, order: Order) -> None:
        """A prompt passes what runs on its group, at the next layer boundaries."""
        for i in run.group:
            insort(self._waiting[i], (order, run), key=lambda entry: entry[0])
            other = self.running[i]
            if other is not None and other.halts_s == math.inf:
                other.halts_s = other.boundary_s(now, self.layers)
                if other.halts_s < other.ends_s:
                    self.agenda.at(other.halts_s, self._halt, other)
        self._serve(now, run.group)

    def _go(self, now: float, run: Run) -> None:
        run.started_s = run.since_s = now
        if self.share_of is not None and not run.alone:
            # Decode gets the largest share of those that have begun there.
            passed = [other.share for i in run.group if (other := self.running[i]) is not None]
            run.share = max((self.share_of(run.group), *passed))
        run.pace = self.pace_of(run)
        run.ends_s = now + run.seconds / run.pace
        for i in run.group:
            self.busy_s[i] += run.seconds
        self.agenda.at(run.ends_s, self._end, run)
        self._touch(now, run.group)

    def pace_of(self, run: Run) -> float:
        """The fraction of its instances' time that it gets, or would get if it went on now."""
        if run.alone or self.pace_at is None:
            return 1.0
        return min(self.pace_at(i, run.share) for i in run.group)

    def _pace(self, now: float, run: Run) -> None:
        """A chunk that runs gets another fraction of its instances."""
        pace = self.pace_of(run)
        if pace == run.pace:
            return
        _account(now, run)
        run.since_s, run.pace = now, pace
        run.ends_s = now + (run.seconds - run.done_s) / pace
        self.agenda.at(run.ends_s, self._end, run)
        if run.halts_s < math.inf:
            run.halts_s = run.boundary_s(now, self.layers)
            if run.halts_s < run.ends_s:
                self.agenda.at(run.halts_s, self._halt, run)

    def _touch(self, now: float, instances: Iterable[int]) -> None:
        if self.touched is not None:
            self.touched(now, instances)

    def _halt(self, now: float, run: Run) -> None:
        if now != run.halts_s or run.still:
            return
        _account(now, run)
        run.ends_s = math.inf
        self._serve(now, run.group)
        self._touch(now, run.group)

    def _serve(self, now: float, instances: Iterable[int]) -> None:
        """Start those that pass and have all their members."""
        here = {entry[0]: entry[1] for i in instances for entry in self._waiting[i]}
        for _, run in sorted(here.items(), key=lambda entry: entry[0]):
            if all(self._ready(j, run) for j in run.group):
                for j in run.group:
                    self._waiting[j].pop(0)
                    self.serving[j] = run
                self._go(now, run)

    def _ready(self, i: int, run: Run) -> bool:
        if self.serving[i] is not None or self._waiting[i][0][1] is not run:
            return False
        other = self.running[i]
        return other is None or other.still

    def _end(self, now: float, run: Run) -> None:
        if now != run.ends_s:
            return  # it stood still since
        _account(now, run)
        run.ends_s = -math.inf  # over: an event of before a stall of no length comes to nothing
        first = run.group[0]
        if self.serving[first] is run:
            for i in run.group:
                self.serving[i] = None
            self.ended(now, run)
            self._serve(now, run.group)
            self._go_on(now, run.group)
            self._touch(now, run.group)
            empty = [i for i in run.group if self.running[i] is None and not self.taken(i)]
            if empty:
                self.vacant(now, empty)
            return
        for i in run.group:
            self.running[i] = None
        self.ended(now, run)
        self._serve(now, run.group)
        self._touch(now, run.group)

    def _go_on(self, now: float, instances: Iterable[int]) -> None:
        """Chunks whose members all serve nobody any more."""
        for i in instances:
            run = self.running[i]
            if run is None or not run.still or any(self.taken(j) for j in run.group):
                continue
            run.stood_s += now - run.halts_s
            run.since_s, run.halts_s = now, math.inf
            run.pace = self.pace_of(run)
            run.ends_s = now + (run.seconds - run.done_s) / run.pace
            self.agenda.at(run.ends_s, self._end, run)
            self.went_on(now, run)


def _account(now: float, run: Run) -> None:
    """What it has computed since it last went on, and what it has not."""
    spent = now - run.since_s
    run.done_s += spent * run.pace
    run.slowed_s += spent * (1.0 - run.pace)
