"""Prompts whose KV goes to another instance while their last chunk runs."""

from __future__ import annotations

import random

from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.protocol.messages import GoOrder
from tests.engine.family_models import Kind
from tests.engine.move_ends import PROMPT, End, request
from tests.engine.one_thread import pool_of, task_on
from tests.engine.plans import Chunks

PLANS: tuple[Chunks, ...] = (
    [(30, [0])],
    [(30, [0, 1])],
    [(18, [0]), (12, [0, 1])],
    [(26, [0, 1]), (4, [0, 1])],
)


class Prefill:
    """A prompt that chunk tasks compute, whose home is to send it on."""

    def __init__(self, chunks: Chunks, seed: int, kind: Kind | None = None) -> None:
        self.chunks, self.draw = chunks, random.Random(seed)
        self.ends = [End(instance) for instance in pool_of(1, seed, kind=kind)]
        self.home, self.target = self.ends[0], self.ends[2]
        self.tasks = [task_on(end.instance, 5, chunks, 1) for end in self.ends]
        for end, task in zip(self.ends, self.tasks, strict=True):
            task.gathers = True
            task.slot_table = SlotTable(end.scheduler.token_to_kv_pool_allocator, 1)
        self.req, self.after = request(), request()
        self.task.req = self.req
        self.home.tasks[5] = self.task

    @property
    def task(self) -> ChunkTask:
        """The task at home."""
        return self.tasks[0]

    def begin(self, number: int) -> None:
        """A chunk starts at its members."""
        order = GoOrder(seq=5, chunk=number, lane=0, serial=number + 1)
        for member in self.chunks[number][1]:
            self.ends[member].instance.begin(self.tasks[member], order, {})

    def before_last(self) -> None:
        """All chunks but the last run, and the last one starts."""
        for number in range(len(self.chunks) - 1):
            self.begin(number)
            while any(len(end.instance.coroutines) for end in self.ends):
                self.draw.choice(self.ends).instance.coroutines.turn()
        self.begin(len(self.chunks) - 1)

    def runs(self) -> bool:
        return any(task.running is not None for task in self.tasks)

    def last(self) -> None:
        """The last chunk runs to its end."""
        while self.runs():
            self.draw.choice(self.ends).turn()

    def joins(self) -> None:
        """Home decodes the prompt, and owns its slots."""
        self.req.output_ids.append(7)
        self.home.joining.add(self.req, self.task.slot_table.hand_over(len(PROMPT)))
        self.home.tracker.join(StockRequest(5, "r", req=self.req, end_s=1.0, joined=True))
