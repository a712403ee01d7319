"""What SGLang's trees store and evict, told to the controller and passed on to SGLang."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.disaggregation.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    StorageMedium,
)

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.engine import cache_events
from sglang_cdsp.engine.cache_events import CacheEvents, build_with_events, changes_of
from sglang_cdsp.protocol.messages import CacheChange, CacheChanged
from tests.engine.fake_stock import FakeReporter


def stored(*names: int, medium: Any = StorageMedium.GPU) -> BlockStored:
    return BlockStored(
        block_hashes=list(names),
        parent_block_hash=None,
        token_ids=list(names),
        block_size=1,
        lora_id=None,
        medium=medium,
    )


def pages(*names: int) -> bytes:
    return array("q", names).tobytes()


class Tree:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def take_events(self) -> list[Any]:
        taken, self.events = self.events, []
        return taken


def test_events_keep_their_order() -> None:
    events = [stored(1, -2), BlockRemoved(block_hashes=[1]), AllBlocksCleared(), stored(3)]
    assert changes_of(events) == [
        CacheChange("stored", pages(1, -2)),
        CacheChange("removed", pages(1)),
        CacheChange("cleared"),
        CacheChange("stored", pages(3)),
    ]


def test_only_device_memory_counts() -> None:
    gone = BlockRemoved(block_hashes=[2], medium=StorageMedium.CPU)
    assert changes_of([stored(1, medium=StorageMedium.CPU), gone]) == []
    assert changes_of([stored(1, medium=None)]) == [CacheChange("stored", pages(1))]


@pytest.mark.parametrize("published", [True, False])
def test_sglangs_publisher_gets_what_the_controller_was_told(published: bool) -> None:
    tree, reporter = Tree(), FakeReporter()
    events = CacheEvents(tree, reporter, published=published)  # type: ignore[arg-type]
    events.tell()
    assert reporter.said == []
    first, second = stored(1), stored(2)
    tree.events = [first]
    events.tell()
    tree.events = [second]
    assert events.take_events() == ([first, second] if published else [])
    assert [kind for kind, _ in reporter.said] == [CacheChanged, CacheChanged]
    told = [change.pages for _, fields in reporter.said for change in fields["changes"]]
    assert told == [pages(1), pages(2)]
    assert events.take_events() == []


@pytest.mark.parametrize(
    ("mode", "cdsp", "rank", "kept"),
    [
        ("null", CdspArgs(), 0, True),
        ("null", CdspArgs(), 1, False),
        ("prefill", CdspArgs(), 0, False),
        ("prefill", CdspArgs(prefix_cache=True), 0, True),
        ("prefill", CdspArgs(prefix_cache=True), 1, False),
    ],
)
def test_one_rank_of_each_instance_keeps_events(
    monkeypatch: pytest.MonkeyPatch, mode: str, cdsp: CdspArgs, rank: int, kept: bool
) -> None:
    parallel = SimpleNamespace(tp_rank=rank, pp_rank=0)
    disagg = SimpleNamespace(disaggregation_mode=mode)
    monkeypatch.setattr(cache_events, "active_args", lambda: cdsp)
    monkeypatch.setattr(cache_events, "get_parallel", lambda: parallel)
    monkeypatch.setattr(cache_events, "get_disagg", lambda: disagg)
    seen: dict[str, Any] = {}
    build_with_events(lambda **more: seen.update(more), enable_kv_cache_events=False, page_size=4)
    assert seen == {"enable_kv_cache_events": kept, "page_size": 4}
