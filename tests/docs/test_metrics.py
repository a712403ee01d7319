"""The page of metrics is the one that is written from the table."""

from __future__ import annotations

import re
from pathlib import Path

from sglang_cdsp.controller.exported.definitions import METRICS, Kind
from tests.docs.metrics_page import page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_metric_is_on_it() -> None:
    rows = re.findall(r"^\| `(sglang_cdsp:\w+)` \|", page(), re.MULTILINE)
    assert sorted(rows) == sorted(metric.full_name for metric in METRICS)


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total"), metric
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets), metric
        assert metric.text.endswith("."), metric
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric
