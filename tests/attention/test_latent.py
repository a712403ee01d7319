"""Latent attention over a group, absorbed and expanded, rows or queries travelling: one answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention.families.latent import queries_circulate
from sglang_cdsp.attention.latent_rows import (
    AbsorbedRows,
    ExpandedRows,
    LatentBlock,
    LatentSizes,
    expanded_is_cheaper,
)
from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.attention.ring import RingLayout, q_ring_attention, ring_attention
from sglang_cdsp.attention.steps import KvRing, QRing
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.spans import split_chunk
from tests.parallel.joint_ranks import Joint
from tests.parallel.ring_cases import RingCase, in_threads, ring_cases, rows_of, thread_lanes

RANKS = 4
SIZES = LatentSizes(heads=3, rank=10, rope=4, nope=6, value=5)
SCALE = 2.0 / math.sqrt(SIZES.nope + SIZES.rope)


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


@dataclass(frozen=True)
class Latents:
    """A prompt's queries and latent rows, and the weights that expand them."""

    q: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, case: RingCase) -> Latents:
        draw = torch.Generator().manual_seed(case.seed)
        total = case.history + case.tokens
        return cls(
            torch.randn(total, SIZES.heads, SIZES.nope + SIZES.rope, generator=draw),
            torch.randn(total, 1, SIZES.row, generator=draw),
            torch.randn(SIZES.rank, SIZES.heads, SIZES.nope + SIZES.value, generator=draw) / 2,
        )

    def expand(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.einsum("tr,rhd->thd", latents, self.weights.to(latents.dtype))
        return both[..., : SIZES.nope], both[..., SIZES.nope :]

    def absorbed(self, q: torch.Tensor) -> torch.Tensor:
        own = torch.einsum("thd,rhd->thr", q[..., : SIZES.nope], self.weights[..., : SIZES.nope])
        return torch.cat((own, q[..., SIZES.nope :]), dim=-1)

    def values_of(self, out: torch.Tensor) -> torch.Tensor:
        """W_UV on what absorbed attention gives."""
        return torch.einsum("thr,rhd->thd", out, self.weights[..., SIZES.nope :])

    def expected(self, case: RingCase) -> torch.Tensor:
        """The chunk's attention over the whole prompt, expanded, in float64."""
        rows = self.rows.double()
        own, values = self.expand(rows[:, 0, : SIZES.rank])
        shared = rows[..., SIZES.rank :].expand(-1, SIZES.heads, -1)
        out, _ = reference_attention(
            self.q[case.history :].double(), torch.cat((own, shared), dim=-1), values,
            causal=True, scale=SCALE, q_start=case.history,
        )  # fmt: skip
        return out


def run(
    case: RingCase,
    lanes: list[Lane],
    *,
    expanded: bool,
    queries: bool,
    ranks: Sequence[Ranks] | None = None,
) -> torch.Tensor:
    """The chunk's attention ``[tokens, heads, value]``, each member in a thread.

    ``ranks``: by member; alone by default.
    """
    latents = Latents.of(case)

    def member(me: int) -> torch.Tensor:
        layout = case.layout(me)
        own = rows_of(layout.pieces[me])
        held = torch.tensor(case.history_rows()[me], dtype=torch.long)
        # Rows lie in the pool at slots that have nothing to do with positions.
        slots = torch.randperm(len(latents.rows), generator=torch.Generator().manual_seed(me))
        pool = torch.full_like(latents.rows, math.nan)
        block_rows = torch.cat((held, own))
        pool[slots[block_rows]] = latents.rows[block_rows]
        q = latents.q[own]
        own_ranks = ALONE if ranks is None else ranks[me]
        shape = AbsorbedRows(SIZES, own_ranks)
        if expanded:
            shape = ExpandedRows(SIZES, own_ranks, latents.expand)
        given = shape.read(latents.rows[own].reshape(-1), 0, len(own)) if case.seed % 2 else None
        block = LatentBlock(pool, slots[block_rows], len(held), shape, given)
        if not expanded:
            q = latents.absorbed(q)
        links = lanes[case.group[me]]
        if queries:
            out = q_ring_attention(q, block, layout, links, scale=SCALE, ring=QRing.of(layout))
        else:
            out = ring_attention(q, block, layout, links, scale=SCALE, ring=KvRing.of(layout))
        return out if expanded else latents.values_of(out)

    outs = in_threads(member, range(len(case.group)))
    result = torch.full((case.tokens, SIZES.heads, SIZES.value), math.nan)
    for spans, out in zip(case.layout(0).pieces, outs, strict=True):
        result[rows_of(spans) - case.history] = out
    return result


@settings(print_blob=True, deadline=None, max_examples=80)
@given(case=ring_cases(RANKS), expanded=st.booleans(), queries=st.booleans())
def test_equals_attention_over_the_full_sequence(
    lanes: list[Lane], case: RingCase, expanded: bool, queries: bool
) -> None:
    out = run(case, lanes, expanded=expanded, queries=queries)
    expected = Latents.of(case).expected(case)
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)


def test_rows_are_expanded_in_tiles(lanes: list[Lane], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that do not divide history, blocks or what is seen of them."""
    case = RingCase(group=(1, 0, 3), history=50, tokens=41)
    whole = run(case, lanes, expanded=True, queries=False)
    monkeypatch.setattr(ExpandedRows, "tile", 7)
    tiled = run(case, lanes, expanded=True, queries=False)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


DEEPSEEK_V3 = LatentSizes(heads=128, rank=512, rope=64, nope=128, value=128)


@pytest.mark.parametrize(("queries", "pays"), [(170, False), (171, True)])
def test_expanding_history_pays_from_171_queries_a_row_on(queries: int, pays: bool) -> None:
    """DeepSeek-V3's sizes: 512 * 256 / (1088 - 320) = 170.7."""
    layout = RingLayout((0,), 0, (100_000,), split_chunk(100_000, queries, 1, 1))
    assert expanded_is_cheaper(layout, DEEPSEEK_V3) is pays


def test_a_chunk_without_history_on_one_instance_has_nothing_to_expand() -> None:
    layout = RingLayout((0,), 0, (0,), split_chunk(0, 5, 1, 1))
    assert expanded_is_cheaper(layout, DEEPSEEK_V3)


@settings(deadline=None)
@given(case=ring_cases(5))
def test_all_members_choose_alike(case: RingCase) -> None:
    chosen = {expanded_is_cheaper(case.layout(me), SIZES) for me in range(len(case.group))}
    assert len(chosen) == 1


@settings(print_blob=True, deadline=None, max_examples=40)
@given(case=ring_cases(3), expanded=st.booleans(), size=st.sampled_from([2, 3]))
def test_ranks_of_an_instance_share_what_travels(
    columns: list[list[Lane]], case: RingCase, expanded: bool, size: int
) -> None:
    """Each has links and heads of its own, and carries its share of the rows that all hold."""
    joints = [Joint(size) for _ in case.group]

    def rank(number: int) -> torch.Tensor:
        ranks = [joint.of(number) for joint in joints]
        return run(case, columns[number], expanded=expanded, queries=False, ranks=ranks)

    expected = Latents.of(case).expected(case)
    for out in in_threads(rank, range(size)):
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("size", [2, 7])
def test_a_block_goes_over_the_links_once(size: int) -> None:
    draw = torch.Generator().manual_seed(4)
    rows = torch.randn(9 * SIZES.row, generator=draw)
    joint = Joint(size)

    def rank(number: int) -> tuple[int, torch.Tensor]:
        shape = AbsorbedRows(SIZES, joint.of(number))
        message = shape.empty(9, rows)
        message.copy_(shape.sent(rows))
        return message.numel(), shape.whole(message, 9)

    found = in_threads(rank, range(size))
    assert sum(numbers for numbers, _ in found) == rows.numel()
    for _, whole in found:
        assert torch.equal(whole, rows)


def test_queries_of_all_ranks_are_counted_against_rows_that_travel_once() -> None:
    """With more ranks each has fewer heads, and what an instance sends is the same either way."""
    layout = RingLayout((0, 1), 0, (2000, 2000), split_chunk(4000, 160, 2, 1))
    sizes = LatentSizes(heads=16, rank=512, rope=64, nope=128, value=128)
    halves = replace(sizes, heads=8)
    for expanded in (False, True):
        alone = queries_circulate(layout, sizes, expanded, 2)
        assert queries_circulate(layout, halves, expanded, 2, ranks=2) is alone
    # Absorbed, 16 heads of queries are more than the rows of a prefix 25 times as long; 8 are not.
    assert not queries_circulate(layout, sizes, False, 2)
    assert queries_circulate(layout, halves, False, 2)
