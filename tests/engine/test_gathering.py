"""The last chunk of any plan leaves home with the KV that one instance alone would have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Span
from tests.engine.gathered import kv_of, run
from tests.engine.one_thread import INSTANCES, LAYERS
from tests.engine.plans import PAGE_SIZES, Chunks, plans


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
