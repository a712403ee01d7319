"""Drawn workloads: ranges, means, the arrival process, and what a seed fixes."""

import numpy as np
import pytest

from sglang_cdsp.simulator.workload import (
    OUTPUTS,
    WORKLOADS,
    arrival_rate,
    at_speed,
    merged,
    poisson,
)

COUNT = 20_000


@pytest.mark.parametrize("name", WORKLOADS)
def test_lengths_keep_to_the_papers_range_and_mean(name: str) -> None:
    requests = poisson(name, 2.0, COUNT, seed=1)
    for lengths, drawn in (
        (WORKLOADS[name], np.array([r.prompt_tokens for r in requests])),
        (OUTPUTS, np.array([r.output_tokens for r in requests])),
    ):
        assert lengths.low <= drawn.min() < lengths.low * 1.1 + 2
        assert lengths.high * 0.9 < drawn.max() <= lengths.high
        assert drawn.mean() == pytest.approx(lengths.mean, abs=4 * drawn.std() / COUNT**0.5)


def test_arrivals_are_poisson() -> None:
    gaps = np.diff([r.arrival_s for r in poisson("short", 2.5, COUNT, seed=2)])
    assert gaps.mean() == pytest.approx(1 / 2.5, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)


def test_a_seed_gives_the_same_prompts_at_every_rate() -> None:
    slow, fast = poisson("long", 0.5, 50, seed=3), poisson("long", 2.0, 50, seed=3)
    assert at_speed(slow, 4.0) == fast
    assert poisson("long", 0.5, 50, seed=4) != slow
    assert arrival_rate(fast) == pytest.approx(4 * arrival_rate(slow))


def test_merged_sources_keep_their_names_and_the_order_of_arrival() -> None:
    both = merged(a=poisson("short", 1.0, 5, seed=0), b=poisson("long", 2.0, 5, seed=1))
    assert sorted(r.rid for r in both) == [f"{s}-{i}" for s in "ab" for i in range(5)]
    times = [r.arrival_s for r in both]
    assert times == sorted(times)
