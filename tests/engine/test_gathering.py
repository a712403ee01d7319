"""The last chunk of any plan leaves home with the KV that one instance alone would have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.spans import Span
from tests.engine.family_models import LATENT, WINDOWS, Kind
from tests.engine.one_thread import INSTANCES, kv_of, run_plan
from tests.engine.plans import PAGE_SIZES, plans


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_home_holds_what_one_instance_alone_would(
    data: st.DataObject, page: int, seed: int
) -> None:
    chunks = data.draw(plans(page, instances=INSTANCES, longest=6))
    tokens = sum(count for count, _ in chunks)
    home = chunks[0][1][0]
    instances, tasks = run_plan(chunks, page, seed)
    found = kv_of(instances[home], tasks[home].slot_table.hand_over(tokens))
    alone, one = run_plan([(tokens, [0])], page, seed)
    expected = kv_of(alone[0], one[0].slot_table.slots([Span(0, tokens)]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert tasks[home].slot_table.tokens == 0


@pytest.mark.parametrize("kind", [WINDOWS, LATENT], ids=["windows and sinks", "latent"])
@settings(max_examples=12, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_so_it_does_in_every_family(kind: Kind, data: st.DataObject, page: int, seed: int) -> None:
    """Blocks of window layers come past nobody, and latent rows are one buffer."""
    chunks = data.draw(plans(page, instances=INSTANCES, longest=6))
    tokens = sum(count for count, _ in chunks)
    home = chunks[0][1][0]
    instances, tasks = run_plan(chunks, page, seed, kind=kind)
    slots = tasks[home].slot_table.hand_over(tokens)
    alone, one = run_plan([(tokens, [0])], page, seed, kind=kind)
    places = one[0].slot_table.slots([Span(0, tokens)])
    for found, expected in zip(instances[home].pool.buffers, alone[0].pool.buffers, strict=True):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[slots], theirs[places], atol=1e-4, rtol=1e-4)
