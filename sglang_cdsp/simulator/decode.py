"""Decode: continuous batching in closed form, one event per change of a batch, not per token.

Between two changes a batch of n requests holding K tokens of KV makes iterations that take
a + b n + c (K + n j) seconds for j = 0, 1, ...; their sum is a quadratic in their number, so a
*run* of iterations is one event. A request that arrives during a run joins at the next iteration
boundary.

Where chunks run on the same instance (`Way`), an iteration takes as much longer as the stretch of
the chunk before it, or stands still while a forward runs that does not give way. The stretch is
that of a run's first iteration; it follows the batch when that changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush

from sglang_cdsp.planner.stretches import stretch_s
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.setup import DecodeModel
from sglang_cdsp.simulator.task import Task

ROUNDING_S = 1e-9
"""Who arrives this close after an iteration's end arrives with it."""


class Way(Enum):
    """How a batch runs: alone, a step after each stretch of a chunk, or not at all for now."""

    ALONE = "alone"
    BESIDE = "beside"
    STILL = "still"


class Batch:
    """One decode instance's running batch.

    Attributes:
        size: requests in it. tokens: KV tokens they hold at the start of the current run.
        busy_s: seconds of iterations of finished runs, without those of chunks between them.
    """

    def __init__(
        self,
        agenda: Agenda,
        model: DecodeModel,
        ended: Callable[[float, Task], None],
        members: int = 1,
        *,
        changed: Callable[[float], None] | None = None,
        overrun_s: float = 0.0,
    ) -> None:
        """`ended(now, task)` hears of last tokens. `members` instances share the KV's reading.

        Args:
            changed: called with the time when a batch starts a run, and when it is empty.
            overrun_s: by how much a chunk's stretch is longer than its share says, seconds.
        """
        self._overrun_s = overrun_s
        self._agenda, self._ended = agenda, ended
        self._a, self._b, self._c = model.a, model.b, model.c / members
        self._share, self._changed = 0.0, changed
        self.size = 0
        self.tokens = 0
        self.busy_s = 0.0
        self._way = Way.ALONE
        self._joining: list[Task] = []
        self._leaving: list[tuple[int, int, Task]] = []
        self._iterations = 0
        self._runs: list[tuple[float, int]] = []
        # The current run: start, first iteration's seconds, growth per iteration, length.
        self._start = self._first = self._growth = 0.0
        self._length = 0
        # Its end, if that is not what the length says; what is left of it while it stands still.
        self._moved_end: float | None = None
        self._rest = 0.0
        self._version = 0

    @property
    def step_s(self) -> float:
        """An iteration of the batch as it is at the start of the current run, seconds."""
        return self._a + self._b * self.size + self._c * self.tokens

    @property
    def mean_left(self) -> float:
        """Tokens to come of a request of the batch, on average, at the start of the current run.

        0 where there is none.
        """
        left = [last - self._iterations for last, *_ in self._leaving]
        return sum(left) / len(left) if left else 0.0

    def join(self, now: float, task: Task) -> None:
        """A request whose KV has arrived: in the batch from the next iteration on."""
        self._joining.append(task)
        elapsed = now - self._start - ROUNDING_S
        if not self.size or (elapsed <= 0 and self._moved_end is None):
            # Idle, or the run begins at this very moment: it begins with the request.
            self._next_run(now)
            return
        self._cut(now)

    def turn(self, now: float, way: Way, share: float = 0.0) -> None:
        """Run in another way from now on; the iteration that runs ends as it began.

        But where a chunk ends, the rest of its stretch does too.

        Args:
            share: the chunk's decode share, above 0 for `Way.BESIDE`.
        """
        if way is self._way and share == self._share:
            return
        was, self._way, self._share = self._way, way, share
        if not self.size:
            return
        if was is Way.STILL:
            end = now + self._rest
        else:
            self._cut(now)
            end = self._end()
        if way is Way.ALONE:
            step = self.step_s + self._c * self.size * (self._length - 1)
            end = min(end, max(now, self._start + self._seconds(self._length - 1)) + step)
        self._move_end(now, end)

    def _next_run(self, now: float) -> None:
        for task in self._joining:
            task.decode_s = now
            task.first_run = len(self._runs)
            task.last_iteration = self._iterations + task.request.output_tokens - 1
            heappush(self._leaving, (task.last_iteration, task.order, task))
            self.size += 1
            self.tokens += task.request.prompt_tokens
        self._joining = []
        self._moved_end = None
        if self.size:
            self._start = now
            self._first = self.step_s
            self._growth = self._c * self.size
            if self._way is Way.BESIDE:
                self._give_way()
            if self._way is Way.STILL:
                self._length = 1
                self._move_end(now, now + self._first)
            else:
                self._plan_end(self._leaving[0][0] - self._iterations)
        if self._changed:
            self._changed(now)

    def _give_way(self) -> None:
        """A stretch before each iteration, as long as the first one's."""
        step = self._first
        stretch = stretch_s(step, self._share)
        scale = 1.0
        if math.isclose(stretch + step, step / self._share):
            # Between its limits a stretch grows with the iteration after it.
            scale = 1.0 / self._share
        self._first = step + stretch + self._overrun_s
        self._growth *= scale

    def _plan_end(self, length: int) -> None:
        self._length = length
        self._version += 1
        self._agenda.at(self._start + self._seconds(length), self._end_run, self._version)

    def _end(self) -> float:
        if self._moved_end is not None:
            return self._moved_end
        return self._start + self._seconds(self._length)

    def _move_end(self, now: float, end: float) -> None:
        """The run ends at another time, or not before it goes on."""
        self._version += 1
        self._moved_end = end
        if self._way is Way.STILL:
            self._rest = end - now
        else:
            self._agenda.at(end, self._end_run, self._version)

    def _cut(self, now: float) -> None:
        """Let the run end with the iteration that runs."""
        if self._moved_end is not None:
            return  # it does
        elapsed = now - self._start - ROUNDING_S
        length = self._iterations_until(elapsed) if elapsed > 0 else 1
        if length < self._length:
            self._plan_end(length)

    def _seconds(self, length: int) -> float:
        return length * self._first + self._growth * (length * (length - 1) // 2)

    def _iterations_until(self, elapsed: float) -> int:
        """The fewest iterations, at least one, that take no less than `elapsed`."""
        if self._growth:
            slope = self._first - self._growth / 2
            root = math.sqrt(slope * slope + 2 * self._growth * elapsed)
            length = math.ceil(2 * elapsed / (slope + root))
        else:
            length = math.ceil(elapsed / self._first)
        length = max(1, length)
        # The root is rounded; one step either way settles it.
        if length > 1 and self._seconds(length - 1) >= elapsed:
            return length - 1
        return length if self._seconds(length) >= elapsed else length + 1

    def _end_run(self, now: float, version: int) -> None:
        if version != self._version:
            return
        length = self._length
        self.busy_s += self.step_s * length + self._c * self.size * (length * (length - 1) // 2)
        self._iterations += length
        self.tokens += self.size * length
        self._note_gaps(now, length)
        over: list[Task] = []
        while self._leaving and self._leaving[0][0] <= self._iterations:
            over.append(heappop(self._leaving)[2])
        for task in over:
            self.size -= 1
            self.tokens -= task.request.prompt_tokens + task.request.output_tokens - 1
            task.token_gaps_s = self._gaps(task)
        self._next_run(now)
        for task in over:
            self._ended(now, task)

    def _note_gaps(self, now: float, length: int) -> None:
        if self._moved_end is None:
            self._runs.append((self._seconds(length) / length, length))
            return
        before = self._seconds(length - 1)
        if length > 1:
            self._runs.append((before / (length - 1), length - 1))
        self._runs.append((now - self._start - before, 1))

    def _gaps(self, task: Task) -> tuple[tuple[float, int], ...]:
        """The first gap reaches back to home's first token, over transfer and waiting."""
        assert task.decode_s is not None
        assert task.first_token_s is not None
        runs = self._runs[task.first_run :]
        gap, count = runs[0]
        first = (task.decode_s - task.first_token_s + gap, 1)
        if count == 1:
            return (first, *runs[1:])
        return (first, (gap, count - 1), *runs[1:])
