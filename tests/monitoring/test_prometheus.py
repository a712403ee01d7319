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
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder

from sglang_cdsp.controller.exported.definitions import METRICS, Kind
from sglang_cdsp.controller.exported.instruments import PrometheusInstruments
from tests.monitoring.dashboards import FOLDER, SGLANGS, queries, scraping
from tests.monitoring.prometheus import PROGRAM, ask, prometheus, wait_for

LABELS = {"seat": "0", "sp_size": "2", "outcome": "finished", "cause": "none"}
OTHERS = {"stage": "plan", "reason": "plan", "state": "computing", "role": "both"}
SCRAPES, EVERY = 4, "2s"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no prometheus on the PATH")


class Pool:
    """Something to scrape: every metric moves on at every scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._to = PrometheusInstruments({"model_name": "m"}, self.registry)
        latency, tokens = SGLANGS
        self._latency = Histogram(latency, "SGLang's own.", ["model_name"], registry=self.registry)
        self._tokens = Counter(tokens, "SGLang's own.", ["model_name"], registry=self.registry)

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the form that is asked for, and its name, as SGLang's server does it."""
        encode, form = choose_encoder(accept)
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
        return encode(self.registry), form


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that has scraped a pool a few times."""
    pool = Pool()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text, form = pool.scrape(self.headers["Accept"])
            self.send_response(200)
            self.send_header("Content-Type", form)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        with prometheus(
            scraping(address, address, EVERY), tmp_path_factory.mktemp("prometheus")
        ) as url:
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
    text, _ = Pool().scrape("*/*")
    lint = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
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
