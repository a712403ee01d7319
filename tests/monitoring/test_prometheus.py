"""A real Prometheus scrapes the metrics, and every query of the dashboard returns data."""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from sglang_cdsp.controller.exported.definitions import METRICS, Kind
from sglang_cdsp.controller.exported.instruments import PrometheusInstruments
from tests.monitoring.dashboards import FOLDER, SGLANGS, queries
from tests.monitoring.prometheus import PROGRAM, ask, prometheus, wait_for

LABELS = {"seat": "0", "sp_size": "2", "outcome": "finished", "cause": "none"}
OTHERS = {"stage": "plan", "reason": "plan", "state": "computing"}
CONFIG = """\
global: {{scrape_interval: 2s}}
scrape_configs: [{{job_name: sglang-decode, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""
SCRAPES = 4

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no prometheus on the PATH")


class Pool:
    """Something to scrape: every metric moves on at every scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._to = PrometheusInstruments({"model_name": "m"}, self.registry)
        latency, tokens = SGLANGS
        self._latency = Histogram(latency, "SGLang's own.", ["model_name"], registry=self.registry)
        self._tokens = Counter(tokens, "SGLang's own.", ["model_name"], registry=self.registry)
        self.scrapes = 0

    def scrape(self) -> bytes:
        self.scrapes += 1
        moves: dict[Kind, Callable[..., None]] = {
            Kind.COUNTER: self._to.count,
            Kind.GAUGE: self._to.put,
            Kind.HISTOGRAM: self._to.observe,
        }
        for metric in METRICS:
            labels = {label: {**LABELS, **OTHERS}[label] for label in metric.labels}
            move = moves[metric.kind]
            move(metric.name, 0.5, **labels)
        self._latency.labels("m").observe(0.5)
        self._tokens.labels("m").inc()
        return generate_latest(self.registry)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that has scraped a pool a few times."""
    pool = Pool()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pool.scrape())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = CONFIG.format(port=server.server_port)
    try:
        with prometheus(config, tmp_path_factory.mktemp("prometheus")) as url:
            wait_for(url, "max(count_over_time(sglang_cdsp:seats[5m]))", SCRAPES)
            yield url
    finally:
        server.shutdown()


@pytest.mark.parametrize("query", queries())
def test_every_query_returns_data(asked: str, query: str) -> None:
    values = [float(row["value"][1]) for row in ask(asked, query)]
    assert values
    assert all(math.isfinite(value) for value in values)


def test_the_names_are_valid(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool comes with prometheus"
    lint = subprocess.run(
        [promtool, "check", "metrics"], input=Pool().scrape(), capture_output=True, check=False
    )
    wrong = [
        line
        for line in (lint.stdout + lint.stderr).decode().splitlines()
        # SGLang's own names have the colon, too.
        if "':'" not in line
    ]
    assert wrong == []
    check = [promtool, "check", "config", "--syntax-only", str(FOLDER / "prometheus.yaml")]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
