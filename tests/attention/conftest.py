"""What the tests of rings share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sglang_cdsp.parallel.links.lanes import Lane
from tests.parallel.ring_cases import thread_lanes


@pytest.fixture(scope="module")
def lanes(request: pytest.FixtureRequest) -> Iterator[list[Lane]]:
    """A lane for each of the module's ``RANKS`` members, linked among threads."""
    lanes = thread_lanes(request.module.RANKS)
    yield lanes
    for lane in lanes:
        lane.close()
