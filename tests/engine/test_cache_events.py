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
from sglang_cdsp.engine.cache_events import (
    CacheEvents,
    build_with_events,
    changes_of,
    take_over_publishing,
)
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


def test_all_that_is_published_is_told() -> None:
    on_host = stored(5, -6, medium=StorageMedium.CPU)
    on_host.parent_block_hash, on_host.cache_salt, on_host.session_id = 4, "salt", "session"
    gone = BlockRemoved(block_hashes=[2], medium=StorageMedium.CPU)
    told = changes_of([on_host, gone, stored(1), AllBlocksCleared()], whole=True)
    assert told == [
        CacheChange(
            "stored",
            pages(5, -6),
            "CPU_PINNED",
            tokens=pages(5, -6),
            parent=4,
            salt="salt",
            session="session",
        ),
        CacheChange("removed", pages(2), "CPU_PINNED"),
        CacheChange("stored", pages(1), tokens=pages(1)),
        CacheChange("cleared"),
    ]


@pytest.mark.parametrize("published", [True, False])
def test_the_controller_is_told_each_turn(published: bool) -> None:
    tree, reporter = Tree(), FakeReporter()
    events = CacheEvents(tree, reporter, published=published)  # type: ignore[arg-type]
    events.tell()
    assert reporter.said == []
    for name in (1, 2):
        tree.events = [stored(name)]
        events.tell()
    assert [kind for kind, _ in reporter.said] == [CacheChanged, CacheChanged]
    told = [change for _, fields in reporter.said for change in fields["changes"]]
    assert [change.pages for change in told] == [pages(1), pages(2)]
    assert [bool(change.tokens) for change in told] == [published] * 2


@pytest.mark.parametrize(
    ("mode", "cached", "config", "left", "published"),
    [
        ("null", True, '{"publisher": "zmq"}', None, True),
        ("null", True, '{"publisher": "null"}', None, False),
        ("null", True, None, None, False),
        ("null", False, '{"publisher": "zmq"}', None, True),
        ("prefill", False, '{"publisher": "zmq"}', '{"publisher": "zmq"}', False),
        ("prefill", True, '{"publisher": "zmq"}', None, True),
    ],
)
def test_instances_have_no_publisher_of_their_own_where_the_pool_has_one(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    cached: bool,
    config: str | None,
    left: str | None,
    published: bool,
) -> None:
    options = SimpleNamespace(kv_events_config=config)
    context = SimpleNamespace(override=lambda source, **new: vars(options).update(new))
    monkeypatch.setattr(cache_events, "get_observability", lambda: options)
    monkeypatch.setattr(cache_events, "get_context", lambda: context)
    disagg = SimpleNamespace(disaggregation_mode=mode)
    monkeypatch.setattr(cache_events, "get_disagg", lambda: disagg)
    memory = SimpleNamespace(disable_radix_cache=not cached)
    monkeypatch.setattr(cache_events, "get_memory", lambda: memory)
    assert take_over_publishing() is published
    assert options.kv_events_config == left


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
