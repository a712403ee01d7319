"""The last chunk of any plan leaves home with the KV that one instance alone would have."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import GoOrder
from tests.engine.family_models import LATENT, WINDOWS, Kind
from tests.engine.one_thread import INSTANCES, LAYERS, Instance, pool_of, task_on
from tests.engine.plans import PAGE_SIZES, Chunks, plans


def run(
    chunks: Chunks, page: int, seed: int, kind: Kind | None = None
) -> tuple[list[Instance], list[ChunkTask]]:
    """Run a plan whose home decodes, members in a drawn order."""
    draw = random.Random(seed)
    instances = pool_of(page, seed, kind=kind)
    tasks = [task_on(instance, 0, chunks, page) for instance in instances]
    for number, (_, group) in enumerate(chunks):
        order = GoOrder(seq=0, chunk=number, lane=0, serial=number + 1)
        for member in group:
            task = tasks[member]
            task.gathers = True
            instances[member].begin(task, order, {})
        while any(len(instance.coroutines) for instance in instances):
            draw.choice(instances).coroutines.turn()
    return instances, tasks


def kv_of(instance: Instance, slots: torch.Tensor) -> torch.Tensor:
    """K and V of all layers at these slots."""
    return instance.pool.kv[:, :, slots]


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_home_holds_what_one_instance_alone_would(
    data: st.DataObject, page: int, seed: int
) -> None:
    chunks = data.draw(plans(page, instances=INSTANCES, longest=6))
    tokens = sum(count for count, _ in chunks)
    home = chunks[0][1][0]
    instances, tasks = run(chunks, page, seed)
    found = kv_of(instances[home], tasks[home].slot_table.hand_over(tokens))
    alone, one = run([(tokens, [0])], page, seed)
    expected = kv_of(alone[0], one[0].slot_table.slots([Span(0, tokens)]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert tasks[home].slot_table.tokens == 0


@pytest.mark.parametrize("kind", [WINDOWS, LATENT], ids=["windows and sinks", "latent"])
@settings(max_examples=25, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_so_it_does_in_every_family(kind: Kind, data: st.DataObject, page: int, seed: int) -> None:
    """Blocks of window layers come past nobody, and latent rows are one buffer."""
    chunks = data.draw(plans(page, instances=INSTANCES, longest=6))
    tokens = sum(count for count, _ in chunks)
    home = chunks[0][1][0]
    instances, tasks = run(chunks, page, seed, kind)
    slots = tasks[home].slot_table.hand_over(tokens)
    alone, one = run([(tokens, [0])], page, seed, kind)
    places = one[0].slot_table.slots([Span(0, tokens)])
    for found, expected in zip(instances[home].pool.buffers, alone[0].pool.buffers, strict=True):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[slots], theirs[places], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("chunks", "sent"),
    [
        ([(96, [0, 1, 2])], 0),  # KV circulates: every block comes past home
        ([(400, [0, 1]), (8, [0, 1])], LAYERS),  # Q does: 8 tokens after 400 of history
    ],
)
def test_nothing_is_sent_twice_where_kv_circulates(
    chunks: Chunks, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    move = start_moves

    def counted(*arguments: Any, note: int, **more: Any) -> Any:
        started.append(note)
        return move(*arguments, note=note, **more)

    monkeypatch.setattr("sglang_cdsp.parallel.gather.start_moves", counted)
    run(chunks, 1, seed=5)
    members = len(chunks[-1][1])
    assert len(started) == sent * members
