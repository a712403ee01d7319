"""The example's dashboard, and what its queries name."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"
NAME = re.compile(r"sglang(?:_cdsp)?:\w+")
WORDS = re.compile(r"[A-Za-z_]\w*")
SGLANGS = ("sglang:inter_token_latency_seconds", "sglang:generation_tokens_total")
"""What the dashboard shows of SGLang's own metrics, of decode servers."""


def written() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    (file,) = (FOLDER / "grafana" / "dashboards" / "json").glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def as_made() -> str:
    """The text that `dashboard.py` would write."""
    spec = importlib.util.spec_from_file_location("monitoring_dashboard", FOLDER / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    text: str = module.text()
    return text


def queries() -> list[str]:
    """PromQL of all panels, as Grafana would send it for all models."""
    found = [
        target["expr"]
        for panel in written()["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
    return [q.replace("$model", ".*").replace("$__rate_interval", "60s") for q in found]


def names_in(query: str) -> set[str]:
    """Metrics that a query names, histograms by their own names."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in NAME.findall(query)}


def labels_in(query: str) -> set[str]:
    """Labels that a query groups by."""
    found = re.findall(r"by \(([^)]*)\)", query)
    return {label for group in found for label in WORDS.findall(group)} - {"le"}


def scraping(prefill: str, decode: str, every: str) -> str:
    """The example's Prometheus configuration for other servers, scraped as often as ``every``."""
    config = (FOLDER / "prometheus.yaml").read_text(encoding="utf-8")
    changes = {"127.0.0.1:30000": prefill, "127.0.0.1:30001": decode}
    changes["scrape_interval: 5s"] = f"scrape_interval: {every}"
    for old, new in changes.items():
        assert config.count(old) == 1, old
        config = config.replace(old, new)
    return config
