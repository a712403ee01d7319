"""Decode: continuous batching in closed form, one event per change of a batch, not per token.

Between two changes a batch of n requests holding K tokens of KV makes iterations that take
a + b n + c (K + n j) seconds for j = 0, 1, ...; their sum is a quadratic in their number, so a
*run* of iterations is one event. A request that arrives during a run joins at the next iteration
boundary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush

from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.setup import DecodeModel
from sglang_cdsp.simulator.task import Task

ROUNDING_S = 1e-9
"""Who arrives this close after an iteration's end arrives with it."""


class Batch:
    """One decode instance's running batch.

    Attributes:
        size: requests in it. tokens: KV tokens they hold at the start of the current run.
        busy_s: seconds of finished runs.
    """

    def __init__(
        self,
        agenda: Agenda,
        model: DecodeModel,
        ended: Callable[[float, Task], None],
        members: int = 1,
    ) -> None:
        """`ended(now, task)` hears of last tokens. `members` instances share the KV's reading."""
        self._agenda, self._ended = agenda, ended
        self._a, self._b, self._c = model.a, model.b, model.c / members
        self.size = 0
        self.tokens = 0
        self.busy_s = 0.0
        self._joining: list[Task] = []
        self._leaving: list[tuple[int, int, Task]] = []
        self._iterations = 0
        self._runs: list[tuple[float, int]] = []
        # The current run: start, first iteration's seconds, growth per iteration, length.
        self._start = self._first = self._growth = 0.0
        self._length = 0
        self._version = 0

    def join(self, now: float, task: Task) -> None:
        """A request whose KV has arrived: in the batch from the next iteration on."""
        self._joining.append(task)
        elapsed = now - self._start - ROUNDING_S
        if not self.size or elapsed <= 0:
            # Idle, or the run begins at this very moment: it begins with the request.
            self._next_run(now)
            return
        length = self._iterations_until(elapsed)
        if length < self._length:
            self._plan_end(length)

    def _next_run(self, now: float) -> None:
        for task in self._joining:
            task.decode_s = now
            task.first_run = len(self._runs)
            task.last_iteration = self._iterations + task.request.output_tokens - 1
            heappush(self._leaving, (task.last_iteration, task.order, task))
            self.size += 1
            self.tokens += task.request.prompt_tokens
        self._joining = []
        if self.size:
            self._start = now
            self._first = self._a + self._b * self.size + self._c * self.tokens
            self._growth = self._c * self.size
            self._plan_end(self._leaving[0][0] - self._iterations)

    def _plan_end(self, length: int) -> None:
        self._length = length
        self._version += 1
        self._agenda.at(self._start + self._seconds(length), self._end_run, self._version)

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
        self._iterations += length
        self.tokens += self.size * length
        seconds = self._seconds(length)
        self.busy_s += seconds
        self._runs.append((seconds / length, length))
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
