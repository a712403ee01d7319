"""Moving one layer's rows between pools, over links."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.errors import LayoutError
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Span, rebalance, split_chunk
from tests.parallel.counting import Counting
from tests.parallel.joint_ranks import Joint
from tests.parallel.ring_cases import in_threads, rows_of, thread_lanes

RANKS = 5
HEADS, KEY_DIM, VALUE_DIM = 2, 3, 5
LAYERS = 2


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(RANKS)
    yield lanes
    for lane in lanes:
        lane.close()


@pytest.fixture(scope="module")
def columns() -> Iterator[list[list[Lane]]]:
    """Lanes of each rank to the same rank of the other instances."""
    columns = [thread_lanes(RANKS) for _ in range(3)]
    yield columns
    for lanes in columns:
        for lane in lanes:
            lane.close()


def rows_like(position: torch.Tensor, layer: int, dim: int) -> torch.Tensor:
    """Rows that show which position, layer and element they are for."""
    mark = position[:, None, None] * 1000.0 + layer * 100 + dim * 10
    return mark + torch.arange(HEADS * dim).view(HEADS, dim)


@settings(print_blob=True, deadline=None, max_examples=60)
@given(
    order=st.permutations(range(RANKS)),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tokens=st.integers(1, 90),
    page=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
def test_every_row_arrives_where_it_should(
    lanes: list[Lane],
    order: list[int],
    sizes: tuple[int, int],
    tokens: int,
    page: int,
    seed: int,
) -> None:
    smaller = order[: min(sizes)]
    group = tuple(order[: max(sizes) + 1])
    pieces = split_chunk(0, tokens, len(smaller), page)
    plan = rebalance(dict(zip(smaller, pieces, strict=True)), group, page)
    # A random slot for every position: own ones and arrivals lie scattered in the pool.
    slots = torch.randperm(2 * tokens, generator=torch.Generator().manual_seed(seed))[:tokens]

    def slots_of(span: Span) -> torch.Tensor:
        return slots[span.start : span.stop]

    def member(me: int) -> bool:
        pools = []
        mine = rows_of(pieces[smaller.index(me)]) if me in smaller else rows_of(())
        for layer in range(LAYERS):
            pool = [torch.zeros(2 * tokens, HEADS, dim) for dim in (KEY_DIM, VALUE_DIM)]
            for buffer, dim in zip(pool, (KEY_DIM, VALUE_DIM), strict=True):
                buffer[slots[mine]] = rows_like(mine, layer, dim)
            pools.append(pool)
        handles = [start_moves(pool, plan.moves, me, slots_of, lanes[me]) for pool in pools]
        for move in plan.moves:
            if move.src == me:  # whoever sends may use the slots for something else right away
                for k, v in pools:
                    k[slots_of(move.span)] = v[slots_of(move.span)] = -1.0
        for handle in handles:
            handle.wait()
        held = rows_of(plan.held[me])
        return all(
            torch.equal(buffer[slots[held]], rows_like(held, layer, dim))
            for layer, pool in enumerate(pools)
            for buffer, dim in zip(pool, (KEY_DIM, VALUE_DIM), strict=True)
        )

    outcomes = in_threads(lambda index: member(group[index]), range(len(group)))
    assert outcomes == [True] * len(group)


@settings(print_blob=True, deadline=None, max_examples=30)
@given(tokens=st.integers(1, 40), size=st.sampled_from([2, 3]), seed=st.integers(0, 99))
def test_rows_that_all_ranks_hold_are_sent_once(
    columns: list[list[Lane]], tokens: int, size: int, seed: int
) -> None:
    """Latent rows: one buffer a layer, alike at all ranks. Each rank carries its share."""
    group = (2, 0, 4)
    pieces = split_chunk(0, tokens, 2, 1)
    plan = rebalance(dict(zip(group, pieces, strict=False)), group, 1)
    slots = torch.randperm(2 * tokens, generator=torch.Generator().manual_seed(seed))[:tokens]
    joints = {me: Joint(size) for me in group}
    counting = {(me, rank): Counting(columns[rank][me]) for me in group for rank in range(size)}

    def marks(positions: torch.Tensor) -> torch.Tensor:
        return positions[:, None, None] * 10.0 + torch.arange(KEY_DIM)

    def end(which: tuple[int, int]) -> bool:
        me, rank = which
        held = rows_of(pieces[group.index(me)]) if me in group[:2] else rows_of(())
        buffer = torch.zeros(2 * tokens, 1, KEY_DIM)
        buffer[slots[held]] = marks(held)
        handle = start_moves(
            [buffer],
            plan.moves,
            me,
            lambda span: slots[span.start : span.stop],
            counting[which],
            ranks=joints[me].of(rank),
        )
        handle.wait()
        now = rows_of(plan.held[me])
        return torch.equal(buffer[slots[now]], marks(now))

    ends = list(counting)
    assert all(in_threads(lambda number: end(ends[number]), range(len(ends))))
    moved = sum(move.span.tokens for move in plan.moves)
    assert sum(links.sent for links in counting.values()) == moved * KEY_DIM * 4
    assert max(links.sent for links in counting.values()) < moved * KEY_DIM * 4 or moved <= 1


def test_slots_must_match_the_span(lanes: list[Lane]) -> None:
    pool = torch.zeros(8, HEADS, KEY_DIM)
    moves = rebalance({0: (Span(0, 8),)}, (0, 1), 1).moves
    with pytest.raises(LayoutError, match="one slot on both sides"):
        start_moves((pool, pool), moves, 0, lambda span: torch.arange(3), lanes[0])
