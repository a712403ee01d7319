"""Memory is released once, and taken again where it was released."""

from __future__ import annotations

import pytest
from sglang.srt.constants import GPU_MEMORY_ALL_TYPES

from sglang_cdsp.control.memory import REGIONS, Memory


def test_the_regions_are_sglangs() -> None:
    assert frozenset(GPU_MEMORY_ALL_TYPES) == REGIONS


def test_all_is_released_and_resumed() -> None:
    memory = Memory(lambda: 0)
    assert "nothing is" in memory.fault([], releases=False)
    assert memory.fault([], releases=True) == ""
    memory.note([], releases=True)
    assert "released already" in memory.fault(["weights"], releases=True)
    assert memory.fault(["weights"], releases=False) == ""
    memory.note(["weights"], releases=False)
    assert memory.fault([], releases=False).startswith("weights: not released")
    assert memory.fault(["kv_cache", "cuda_graph"], releases=False) == ""


def test_a_busy_server_keeps_its_memory() -> None:
    memory = Memory(lambda: 3)
    assert memory.fault([], releases=True).startswith("3 requests")
    memory.note([], releases=True)
    assert memory.fault([], releases=False) == ""


@pytest.mark.parametrize("releases", [True, False])
def test_unknown_and_shared_memory_is_refused(releases: bool) -> None:
    memory = Memory(lambda: 0, shares_weights=True)
    assert "unknown tags kv" in memory.fault(["kv"], releases=releases)
    assert "--weight-cache-mode off" in memory.fault([], releases=releases)
