"""Metrics of a pool have the labels of one replica, as a decode server's have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.engine import metric_labels
from sglang_cdsp.engine.metric_labels import collect_as_one_replica, replica_labels

STOCK = {"model_name": "m", "engine_type": "prefill", "pp_rank": 0, "moe_ep_rank": 0}


def test_the_collector_gets_the_labels_of_a_rank_of_one_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parallel = SimpleNamespace(dp_rank=3, tp_rank=1, tp_size=2)
    monkeypatch.setattr(metric_labels, "get_parallel", lambda: parallel)
    made: list[tuple[Any, ...]] = []

    def original(collector: Any, labels: Any, **more: Any) -> None:
        made.append((collector, labels, more))

    labels = {**STOCK, "tp_rank": 1, "dp_rank": 3}
    collect_as_one_replica(original, "collector", labels=labels, enable_lora=False)
    assert made == [("collector", {**STOCK, "tp_rank": 7}, {"enable_lora": False})]


@given(st.integers(1, 4), st.integers(1, 4))
def test_no_two_ranks_share_their_labels(instances: int, tp_size: int) -> None:
    ranks = [(instance, rank) for instance in range(instances) for rank in range(tp_size)]
    labels = [
        replica_labels({**STOCK, "tp_rank": rank, "dp_rank": instance}, instance, rank, tp_size)
        for instance, rank in ranks
    ]
    assert [label["tp_rank"] for label in labels] == list(range(instances * tp_size))
    assert all(set(label) == {*STOCK, "tp_rank"} for label in labels)


def test_a_label_of_the_operators_own_stays() -> None:
    labels = {**STOCK, "tp_rank": 0, "dp_rank": "pool-1"}
    assert replica_labels(labels, 1, 0, 1) == {**STOCK, "tp_rank": 1, "dp_rank": "pool-1"}
