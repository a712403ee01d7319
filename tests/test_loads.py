"""The instances' loads as that of one replica."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.load_snapshot import (
    DisaggregationMetrics,
    LoadSnapshot,
    MemoryMetrics,
    QueueMetrics,
)

from sglang_cdsp import loads
from sglang_cdsp.loads import LARGEST, MEANS, PoolLoadReader, one_replica


class Reader:
    """SGLang's reader of the snapshots of some instances."""

    dp_size = 3

    def __init__(self, *found: LoadSnapshot) -> None:
        self.found = list(found)

    def read_all(self) -> list[LoadSnapshot]:
        return self.found


FIRST = LoadSnapshot(
    timestamp=5.0,
    num_running_reqs=1,
    num_waiting_reqs=2,
    num_used_tokens=30,
    max_total_num_tokens=100,
    token_usage=0.3,
    total_prefill_uncached_tokens=1000,
    total_prefill_busy_us=11,
    decode_moments=[1.0, 2.0],
    memory=MemoryMetrics(weight_gb=1.5, kv_cache_gb=2.0, graph_gb=0.0, token_capacity=100),
    disaggregation=DisaggregationMetrics(
        mode="prefill", prefill_inflight_queue_reqs=1, kv_transfer_latency_ms=4.0
    ),
    queues=QueueMetrics(waiting=2, grammar=0, paused=0, retracted=0, prealloc_ready=0),
)
SECOND = LoadSnapshot(
    timestamp=4.0,
    dp_rank=1,
    num_running_reqs=3,
    num_used_tokens=10,
    max_total_num_tokens=100,
    token_usage=0.1,
    total_prefill_uncached_tokens=500,
    total_prefill_busy_us=4,
    disaggregation=DisaggregationMetrics(mode="prefill", kv_transfer_latency_ms=6.0),
    queues=QueueMetrics(waiting=1, grammar=1, paused=0, retracted=0, prealloc_ready=0),
)


def test_what_the_instances_have_is_added_up() -> None:
    load = one_replica([FIRST, SECOND])
    assert load is not None
    assert (load.dp_rank, load.timestamp) == (0, 5.0)
    assert (load.num_running_reqs, load.num_waiting_reqs, load.num_used_tokens) == (4, 2, 40)
    assert (load.max_total_num_tokens, load.token_usage) == (200, pytest.approx(0.2))
    # Per busy microsecond the pool prefilled twice as much as an instance does on the average.
    assert (load.total_prefill_uncached_tokens, load.total_prefill_busy_us) == (1500, 7)
    assert load.queues == QueueMetrics(3, 1, 0, 0, 0)
    assert load.memory == FIRST.memory, "the second one does not say"
    assert load.decode_moments == [1.0, 2.0]
    assert load.disaggregation is not None
    assert load.disaggregation.mode == "prefill"
    assert load.disaggregation.prefill_inflight_queue_reqs == 1
    assert load.disaggregation.kv_transfer_latency_ms == 6.0


def test_an_unpublished_load_is_no_load() -> None:
    assert one_replica([]) is None
    reader = PoolLoadReader(Reader())
    assert (reader.read(0), reader.read_all()) == (None, [])


def test_there_is_one_rank() -> None:
    reader = PoolLoadReader(Reader(FIRST, SECOND))
    assert reader.read_all() == [one_replica([FIRST, SECOND])] == [reader.read(0)]
    assert reader.read(1) is None
    assert reader.dp_size == 3, "the rest is SGLang's"


def test_the_accelerators_are_those_of_all_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "get_parallel", lambda: SimpleNamespace(dp_size=3, tp_size=2))
    assert loads.pool_accelerators() == 6


COUNTS = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens", "max_total_num_tokens")
SNAPSHOTS = st.lists(
    st.builds(
        LoadSnapshot,
        token_usage=st.floats(0, 1),
        timestamp=st.floats(1e-6, 1e9),  # 0 says that nothing was published
        **dict.fromkeys(COUNTS, st.integers(0, 10**9)),
    ),
    min_size=1,
    max_size=5,
)


@given(SNAPSHOTS)
def test_counts_are_sums_and_shares_stay_shares(snapshots: list[LoadSnapshot]) -> None:
    load = one_replica(snapshots)
    assert load is not None
    for name in COUNTS:
        assert getattr(load, name) == sum(getattr(snapshot, name) for snapshot in snapshots)
    usages = [snapshot.token_usage for snapshot in snapshots]
    assert min(usages) <= load.token_usage + 1e-9
    assert load.token_usage <= max(usages) + 1e-9
    assert load.timestamp == max(snapshot.timestamp for snapshot in snapshots)


def test_sums_would_be_wrong_for_numbers_that_are_there() -> None:
    """A number of SGLang's that is renamed would be added up without a word."""
    sections = (
        annotation
        for field in msgspec.structs.fields(LoadSnapshot)
        for annotation in getattr(field.type, "__args__", ())
    )
    records = [kind for kind in sections if isinstance(kind, type(LoadSnapshot))]
    names = {name for kind in (LoadSnapshot, *records) for name in kind.__struct_fields__}
    assert names >= MEANS | LARGEST
