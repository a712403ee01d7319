"""Instances of two ranks that hold the same latent rows: any plan gives what the model gives alone.

Each rank has coroutines, slots and links of its own, to the same rank of the other instances. All
run in one thread, where ranks switch as they like and meet at each gather. (That ranks of a server
switch alike is ``test_coroutines.py``'s.) Every rank computes all heads here, so that each gives
the whole answer.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.parallel.ranks import Ranks
from sglang_cdsp.parallel.spans import Span, tokens_of
from sglang_cdsp.protocol.messages import GoOrder
from tests.engine.family_models import LATENT, RANK, ROPE
from tests.engine.family_models import LAYERS as LATENT_LAYERS
from tests.engine.one_thread import INSTANCES, Instance, pool_of, run_plan, task_on
from tests.engine.plans import PAGE_SIZES, Chunks, plans

SIZE = 2
ROW_BYTES = LATENT_LAYERS * (RANK + ROPE) * 4


class Meeting:
    """Gathers among the ranks of each instance: by coroutine, in the order of its gathers."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[int, int, tuple[float, ...]]] = Counter()
        self._parts: defaultdict[tuple[int, tuple[float, ...], int], dict[int, torch.Tensor]]
        self._parts = defaultdict(dict)

    def of(self, rank: int) -> Callable[[Instance], Ranks]:
        """The ranks of an instance as one of them sees them."""
        return lambda instance: Ranks(rank, SIZE, partial(self._gather, instance, rank))

    def _gather(self, instance: Instance, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        running = instance.coroutines._current
        assert running is not None, "ranks gather inside of a forward"
        who = (rank, instance.number, running.order)
        self._calls[who] += 1
        parts = self._parts[instance.number, running.order, self._calls[who]]
        parts[rank] = tensor.clone()
        instance.coroutines.give_way(lambda: len(parts) == SIZE)
        assert len({part.numel() for part in parts.values()}) == 1
        return torch.cat([parts[number] for number in range(SIZE)])


Column = list[Instance]


def run_columns(
    at_once: list[Chunks], page: int, seed: int, *, gathers: bool
) -> tuple[list[Column], list[list[list[ChunkTask]]], list[list[dict[int, torch.Tensor]]]]:
    """Run all plans at once on all ranks; by rank the instances, tasks and what they computed."""
    draw, meeting = random.Random(seed), Meeting()
    columns = [pool_of(page, seed + r, kind=LATENT, ranks=meeting.of(r)) for r in range(SIZE)]
    tasks = [
        [[task_on(i, seq, chunks, page) for i in column] for seq, chunks in enumerate(at_once)]
        for column in columns
    ]
    found: list[list[dict[int, torch.Tensor]]] = [[{} for _ in at_once] for _ in columns]
    started, serial = [0] * len(at_once), 0
    instances = [instance for column in columns for instance in column]
    while any(len(i.coroutines) for i in instances) or any(
        n < len(p) for n, p in zip(started, at_once, strict=True)
    ):
        seq = draw.randrange(len(at_once))
        idle = all(task.running is None for rank in tasks for task in rank[seq])
        if idle and started[seq] < len(at_once[seq]):
            serial += 1
            order = GoOrder(seq=seq, chunk=started[seq], lane=seq, serial=serial)
            for rank, column in enumerate(columns):
                for member in at_once[seq][started[seq]][1]:
                    task = tasks[rank][seq][member]
                    task.gathers = gathers
                    column[member].begin(task, order, found[rank][seq])
            started[seq] += 1
        draw.choice(instances).coroutines.turn()
    for instance in instances:
        assert instance.stopped == []
    return columns, tasks, found


@settings(max_examples=30, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_any_plans_at_once_give_what_the_model_gives_alone(
    data: st.DataObject, page: int, seed: int
) -> None:
    """Rings, growth, and queries that travel."""
    drawn = st.lists(plans(page, instances=INSTANCES, longest=6), min_size=1, max_size=2)
    at_once = data.draw(drawn)
    _, tasks, found = run_columns(at_once, page, seed, gathers=False)
    for rank in range(SIZE):
        for seq in range(len(at_once)):
            expected = LATENT.alone(tasks[rank][seq][0].tokens)
            rows = found[rank][seq]
            together = torch.stack([rows[position] for position in range(len(expected))])
            torch.testing.assert_close(together.double(), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_every_rank_of_home_holds_all_rows(data: st.DataObject, page: int, seed: int) -> None:
    """What circulated past it in shares, and what it fetched."""
    chunks = data.draw(plans(page, instances=INSTANCES, longest=6))
    tokens = sum(count for count, _ in chunks)
    home = chunks[0][1][0]
    columns, tasks, _ = run_columns([chunks], page, seed, gathers=True)
    alone, one = run_plan([(tokens, [0])], page, seed, kind=LATENT)
    places = one[0].slot_table.slots([Span(0, tokens)])
    for rank, column in enumerate(columns):
        slots = tasks[rank][0][home].slot_table.hand_over(tokens)
        for found, expected in zip(column[home].pool.buffers, alone[0].pool.buffers, strict=True):
            for mine, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(mine[slots], theirs[places], atol=1e-4, rtol=1e-4)


def test_rows_and_moves_go_over_the_links_once() -> None:
    """A group that grows: a quarter of the history moves, then blocks circulate."""
    chunks: Chunks = [(200, [0]), (200, [0, 1])]
    columns, _, _ = run_columns([chunks], 1, 3, gathers=False)
    sent = [sum(i.hub.traffic.taken().sent_bytes for i in column) for column in columns]
    last = plan_layout(chunks, 1)[-1]
    moved = tokens_of([move.span for move in last.moves])
    blocks = sum(tokens_of((*h, *p)) for h, p in zip(last.history, last.spans, strict=True))
    assert (moved, blocks) == (100, 400)
    assert sent == [ROW_BYTES * (moved + blocks) // SIZE] * SIZE
