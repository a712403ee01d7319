"""Which decode instance takes a request: the freest, as Llumnix's virtual usage has it.

Freeness is free KV slots, not counting those promised to requests still on their way, over the
batch that runs. A request takes all slots that it will ever need, prompt and
output, so decode never has to take KV back; if no instance has them it waits, first come first
served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sglang_cdsp.simulator.decode import Batch
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.task import Task


class DecodeRouter:
    """All decode instances and the requests that wait for room in them.

    Attributes:
        free: KV slots held by and promised to nobody, per instance.
        batches: one per instance.
        peak_slots: most slots ever taken, per instance.
    """

    def __init__(
        self,
        setup: Setup,
        agenda: Agenda,
        reserved: Callable[[float, Task], None],
        ended: Callable[[float, Task], None],
    ) -> None:
        """`reserved` hears of slots given, `ended` of requests whose last token came."""
        n = setup.decode_instances
        self._capacity = setup.decode_kv_tokens
        self._reserved, self._ended = reserved, ended
        self.free = [self._capacity] * n
        self.peak_slots = [0] * n
        self.batches = [Batch(agenda, setup.decode, self._end) for _ in range(n)]
        self._waiting: deque[Task] = deque()

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Seconds of iterations per instance."""
        return tuple(batch.busy_s for batch in self.batches)

    def reserve(self, now: float, task: Task) -> None:
        """Give the request slots at the freest instance, now or when it is its turn."""
        self._waiting.append(task)
        self._serve(now)

    def join(self, now: float, task: Task) -> None:
        """All its KV is there."""
        assert task.decode_instance is not None
        if task.request.output_tokens == 1:
            self._end(now, task)
        else:
            self.batches[task.decode_instance].join(now, task)

    def check_empty(self, now: float, rid: str) -> None:
        """Nothing is held."""
        if self._waiting or self.free != [self._capacity] * len(self.free):
            raise InvariantError(now, rid, f"decode is not empty at the end: free {self.free}")

    def _end(self, now: float, task: Task) -> None:
        assert task.decode_instance is not None
        i = task.decode_instance
        self.free[i] += task.decode_slots
        if not task.decode_slots or self.free[i] > self._capacity:
            raise InvariantError(now, task.rid, f"decode instance {i} freed slots twice")
        task.decode_slots = 0
        self._ended(now, task)
        self._serve(now)

    def _serve(self, now: float) -> None:
        while self._waiting:
            task = self._waiting[0]
            need = task.total_tokens
            best = self._freest(need)
            if best is None:
                return
            self._waiting.popleft()
            self.free[best] -= need
            self.peak_slots[best] = max(self.peak_slots[best], self._capacity - self.free[best])
            task.decode_instance, task.decode_slots = best, need
            self._reserved(now, task)

    def _freest(self, need: int) -> int | None:
        """Among the instances with the room; a tie goes to the lower number."""
        best, freeness = None, -1.0
        for i, (free, batch) in enumerate(zip(self.free, self.batches, strict=True)):
            here = free / max(1, batch.size)
            if free >= need and here > freeness:
                best, freeness = i, here
        return best
