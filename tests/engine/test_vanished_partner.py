"""A partner that vanishes inside a chunk, at each of its exchanges: the others lose nothing.

Life cycle of a task, coroutines, attention and links are the real ones; all instances run in one
thread. The partner is suspended for ever where it was about to exchange, as a killed one is, and
nothing says so until the controller stops the task or drops the partner's links.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.links.threads import Switchboard, at_once
from sglang_cdsp.parallel.links.types import Event, Sent
from sglang_cdsp.protocol.messages import Drained, Failed, GoOrder, Report
from tests.engine.one_thread import INSTANCES, Instance, alone, task_on
from tests.engine.plans import Chunks

CHUNKS: Chunks = [(24, [0]), (36, [0, 1, 2])]
"""In the second chunk history moves to both of the instances that join, and blocks circulate."""

MOST_TURNS = 5000


class Said:
    """What a rank reports."""

    instance, tp_rank, leads = 0, 0, True

    def __init__(self, instance: int) -> None:
        self.instance = instance
        self.said: list[tuple[type[Report], dict[str, Any]]] = []

    def send(self, kind: type[Report], **fields: Any) -> None:
        self.said.append((kind, fields))

    send_from_leader = send

    @property
    def kinds(self) -> list[type[Report]]:
        return [kind for kind, _ in self.said]


class Member:
    """An instance with the work on its tasks, and what may become of it."""

    def __init__(self, number: int, board: Switchboard) -> None:
        self.at = Instance(number, 1, board, random.Random(number), shared=False)
        self.reporter = Said(number)
        self.vanished = False
        self.exchanges = 0
        self.last_exchange: int | None = None
        nothing: Any = None
        reporter: Any = self.reporter
        self.work = ChunkWork(
            nothing,
            nothing,
            reporter,
            self.at.runner,
            self.at.coroutines,
            lambda: None,
            lambda tokens: None,
        )
        open_lane = self.at.hub.open

        def open_watched(lane: int, serial: int, members: Sequence[int]) -> Lane:
            opened = open_lane(lane, serial, members)
            exchange = opened.exchange
            opened.exchange = self._before(exchange)  # type: ignore[method-assign]
            return opened

        self.at.hub.open = open_watched  # type: ignore[method-assign]

    def _before(self, exchange: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.exchanges == self.last_exchange:
                self.vanished = True
                self.at.coroutines.give_way(lambda: False)
            self.exchanges += 1
            return exchange(*args, **kwargs)

        return watched

    def turn(self, task: ChunkTask) -> None:
        """One turn of its loop, while it lives."""
        if not self.vanished:
            self.at.hub.poll()
            self.work.poll(task)
            self.at.coroutines.turn()


class Pool:
    """Three instances and a task that is on all of them."""

    def __init__(self, hook: Callable[..., Any] = at_once) -> None:
        board = Switchboard(hook=hook)
        self.members = [Member(number, board) for number in range(INSTANCES)]
        hubs = [member.at.hub for member in self.members]
        said = {
            (me, other): hubs[me].invite(other)
            for me in range(INSTANCES)
            for other in range(INSTANCES)
            if me != other
        }
        for (me, other), invitation in said.items():
            hubs[other].join(me, 1, invitation)
        self.serial = 0
        self.tasks = self.new_tasks(0, CHUNKS)

    def new_tasks(self, seq: int, chunks: Chunks) -> list[ChunkTask]:
        return [task_on(member.at, seq, chunks, 1) for member in self.members]

    def begin(self, tasks: list[ChunkTask], chunk: int, group: Sequence[int]) -> None:
        """All members are ready, and start."""
        self.serial += 1
        for number in group:
            tasks[number].next_chunk = chunk
            self.members[number].work.announce(tasks[number])
            order = GoOrder(seq=tasks[number].seq, chunk=chunk, lane=0, serial=self.serial)
            self.members[number].work.begin(tasks[number], order)

    def run(self, tasks: list[ChunkTask], over: Callable[[], bool]) -> None:
        """Let everybody who lives have turns until ``over``."""
        for _ in range(MOST_TURNS):
            if over():
                return
            for member, task in zip(self.members, tasks, strict=True):
                member.turn(task)
        raise AssertionError("it does not come to an end")

    def some_turns(self) -> None:
        for _ in range(100):
            for member, task in zip(self.members, self.tasks, strict=True):
                member.turn(task)

    def until_vanished(self, seat: int, exchange: int | None) -> bool:
        """Run the plan until the partner vanishes, or to its end; whether it vanished."""
        self.begin(self.tasks, 0, [0])
        self.run(self.tasks, lambda: self.tasks[0].running is None)
        self.members[seat].last_exchange = exchange
        self.begin(self.tasks, 1, [0, 1, 2])
        partner = self.members[seat]
        self.run(
            self.tasks,
            lambda: partner.vanished or all(task.running is None for task in self.tasks),
        )
        self.some_turns()
        return partner.vanished


def exchanges_of(seat: int) -> int:
    """How often an instance exchanges in the whole plan."""
    pool = Pool()
    assert not pool.until_vanished(seat, None)
    return pool.members[seat].exchanges


def assert_nothing_is_left(pool: Pool, survivors: list[Member]) -> None:
    """No lane is open, nothing is waited for, and no slot is held once the task is released."""
    for member in survivors:
        task = pool.tasks[member.at.number]
        shown = member.at.hub.snapshot()
        assert shown["open"] == {}
        assert shown["waiting"] == []
        assert len(member.at.coroutines) == 0
        assert member.reporter.kinds.count(Drained) == 1
        member.work.release(task, "lost", silent=True)
        assert member.at.allocator.taken == set()


def assert_survivors_go_on(pool: Pool, survivors: list[Member]) -> None:
    """The lane of the broken chunk serves the survivors' next one, and its answer is right."""
    group = [member.at.number for member in survivors]
    chunks: Chunks = [(40, group)]
    tasks = pool.new_tasks(1, chunks)
    pool.begin(tasks, 0, group)
    pool.run(tasks, lambda: all(tasks[number].running is None for number in group))
    expected = alone(tasks[group[0]].tokens)
    for member in survivors:
        number = member.at.number
        assert tasks[number].error == ""
        spans = tasks[number].layouts[0].shard(number)
        positions = [p for span in spans for p in range(span.start, span.stop)]
        hidden = member.at.outputs[1].hidden[: len(positions)]
        torch.testing.assert_close(hidden.double(), expected[positions], atol=1e-4, rtol=1e-4)


ENDS = ("stop", "drop, then stop", "stop, then drop")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("seat", range(INSTANCES))
def test_a_task_ends_whichever_exchange_its_partner_vanishes_at(seat: int, how: str) -> None:
    count = exchanges_of(seat)
    assert count >= 4, "it exchanges blocks and history at each of two layers"
    for exchange in range(count):
        pool = Pool()
        assert pool.until_vanished(seat, exchange)
        survivors = [member for member in pool.members if not member.vanished]
        waiting = [m for m in survivors if pool.tasks[m.at.number].running is not None]
        for step in how.split(", then "):
            for member in survivors:
                task = pool.tasks[member.at.number]
                if step == "drop":
                    member.at.hub.drop(seat, "its life 1 was given up")
                elif not task.over:  # as the engine asks before it stops one
                    member.work.stop(task)
            pool.some_turns()
            if step == "drop" and how.startswith("drop"):
                for member in waiting:
                    assert Failed in member.reporter.kinds, "a broken link fails at once"
        pool.run(
            pool.tasks,
            lambda alive=survivors: all(Drained in m.reporter.kinds for m in alive),  # type: ignore[misc]
        )
        assert_nothing_is_left(pool, survivors)
        for member in survivors:
            member.at.hub.drop(seat)
        assert_survivors_go_on(pool, survivors)


def test_who_still_writes_to_a_vanished_partner_has_drained_when_its_link_is_dropped() -> None:
    """A frozen partner takes no more, so a block on its way to it does not come to an end."""
    frozen = 2
    gone = False

    def never_arrives(seat: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        kept: list[Event] = [e for e in events if gone and isinstance(e, Sent) and e.seat == frozen]
        return [event for event in events if event not in kept], kept

    pool = Pool(hook=never_arrives)
    partner = pool.members[frozen]
    pool.begin(pool.tasks, 0, [0])
    pool.run(pool.tasks, lambda: pool.tasks[0].running is None)
    gone = True
    partner.last_exchange = 0
    pool.begin(pool.tasks, 1, [0, 1, 2])
    pool.run(pool.tasks, lambda: partner.vanished)
    pool.some_turns()
    survivors = pool.members[:2]
    for member in survivors:
        member.work.stop(pool.tasks[member.at.number])
    pool.some_turns()
    assert Drained not in pool.members[0].reporter.kinds, "history on its way to it is read"
    for member in survivors:
        member.at.hub.drop(frozen)
    pool.some_turns()
    assert_nothing_is_left(pool, survivors)
    assert_survivors_go_on(pool, survivors)
