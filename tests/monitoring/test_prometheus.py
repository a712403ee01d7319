"""A real Prometheus scrapes the metrics, and every query of the dashboard returns data."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sglang_cdsp.controller.exported.definitions import METRICS, Kind
from sglang_cdsp.controller.exported.instruments import PrometheusInstruments
from sglang_cdsp.protocol.ports import free_ports
from tests.monitoring.dashboards import FOLDER, queries

PROMETHEUS = shutil.which("prometheus")
LABELS = {"seat": "0", "sp_size": "2", "outcome": "finished", "cause": "none"}
OTHERS = {"stage": "plan", "reason": "plan", "state": "computing"}
CONFIG = """\
global: {{scrape_interval: 2s}}
scrape_configs: [{{job_name: pool, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""
SCRAPES = 4
WITHIN_S = 60.0

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus on the PATH")


class Pool:
    """Something to scrape: every metric moves on at every scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._to = PrometheusInstruments({"model_name": "m"}, self.registry)
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
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(port=server.server_port), encoding="utf-8")
    url = f"127.0.0.1:{free_ports(1)[0]}"
    assert PROMETHEUS is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={url}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + WITHIN_S
        while (kept := samples(f"http://{url}")) < SCRAPES and time.monotonic() < deadline:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        assert kept >= SCRAPES, (folder / "log").read_text()
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait()
        server.shutdown()


def samples(url: str) -> int:
    """How often the pool was scraped, as Prometheus has kept it; 0 while it does not answer."""
    try:
        found = ask(url, "max(count_over_time(sglang_cdsp:seats[5m]))")
    except OSError:
        return 0
    return int(found[0]["value"][1]) if found else 0


def ask(url: str, query: str) -> list[Any]:
    """The values of a query now."""
    line = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(line, timeout=30) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return found


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
