"""What all ranks of an instance hold alike goes over the links once, in shares."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.ranks import ALONE
from tests.parallel.joint_ranks import Joint
from tests.parallel.ring_cases import in_threads


@settings(print_blob=True, deadline=None, max_examples=40)
@given(size=st.integers(1, 5), rows=st.integers(0, 23))
def test_shares_make_up_the_whole(size: int, rows: int) -> None:
    """Fewer rows than ranks, and rows that ranks cannot share evenly, too."""
    full = torch.arange(rows * 6).view(rows, 2, 3)
    joint = Joint(size)

    def rank(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        ranks = joint.of(number)
        part = full[ranks.share(rows)].contiguous()
        return part, ranks.whole(part, rows)

    found = in_threads(rank, range(size))
    assert torch.equal(torch.cat([part for part, _ in found]), full)
    assert max(part.shape[0] for part, _ in found) == -(-rows // size)
    for _, whole in found:
        assert torch.equal(whole, full)
        assert whole.is_contiguous()


def test_a_rank_alone_carries_all_and_gathers_nothing() -> None:
    rows = torch.zeros(5, 1, 3)
    assert ALONE.share(5) == slice(0, 5)
    assert ALONE.whole(rows, 5) is rows
