"""What people see of a running pool: its log, its metrics, and the timeline of its plan log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from sglang_cdsp.controller.exported.definitions import METRICS, PREFIX, Kind
from tests.serving.asking import until
from tests.serving.client import Client, text_tokens

PLAN = [(600, [0]), (900, [0, 1])]


def scraped(client: Client) -> dict[str, float]:
    """The pool's samples, summed over labels that tell the model; ``name{labels}`` to value."""
    text = requests.get(f"{client.servers.urls['prefill']}/metrics", timeout=10).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "pid")}
                shown = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
                found[f"{sample.name.removeprefix(PREFIX)}{{{shown}}}"] = sample.value
    return found


def log_lines(client: Client) -> Iterator[str]:
    """Lines of the prefill server's log."""
    yield from client.servers.servers["prefill"].log_text().splitlines()


@pytest.fixture(scope="module")
def before_and_after(client: Client, checkpoint: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What was scraped before and after a request whose chunk widens, and one that is refused."""
    before = scraped(client)
    client.pool(text_tokens(checkpoint, 1500, 120), PLAN, rid="widens")
    client.prefill(text_tokens(checkpoint, 100, 121), rid="never", sampling_params={"n": 2})
    done = "requests_total{cause=none,outcome=finished}"
    assert until(lambda: scraped(client)[done] == before[done] + 1)
    return before, scraped(client)


def test_every_metric_is_scraped(client: Client) -> None:
    names = {name.partition("{")[0] for name in scraped(client)}
    always = {m.name for m in METRICS if m.kind is not Kind.HISTOGRAM}
    assert always <= names


def test_a_request_is_counted(
    before_and_after: tuple[dict[str, float], dict[str, float]],
) -> None:
    before, after = before_and_after

    def more(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert more("prompt_tokens_total{outcome=finished}") == 1500
    assert more("chunks_total{sp_size=1}") == 1
    assert more("chunks_total{sp_size=2}") == 1
    assert more("chunk_tokens_total{sp_size=2}") == 900
    assert more("ttft_seconds_count{}") == 1
    assert more("request_chunks_sum{}") == 2
    assert more("history_moved_tokens_total{seat=0}") > 0
    assert more("link_sent_bytes_total{seat=0}") > 0
    assert more("link_sent_bytes_total{seat=1}") > 0
    assert more("kv_transferred_tokens_total{}") == 1500
    assert more("busy_seconds_total{seat=0}") > 0


def test_the_log_tells_what_runs_and_what_ended(
    client: Client, before_and_after: tuple[dict[str, float], dict[str, float]]
) -> None:
    (start,) = [line for line in log_lines(client) if "latency model measured at start" in line]
    assert "policy cdsp-late" in start
    assert until(lambda: any("widens: " in line for line in log_lines(client)))
    (told,) = [line for line in log_lines(client) if "widens: 1500 tokens" in line]
    assert "600@1 then 900@2, waited " in told
    assert ", TTFT " in told
    assert not any("cdsp-probe" in line for line in log_lines(client))


def test_the_timeline_of_the_run(
    plan_log: Path, tmp_path: Path, before_and_after: tuple[dict[str, float], dict[str, float]]
) -> None:
    trace = tmp_path / "trace.json"
    command = [sys.executable, "-m", "sglang_cdsp", "timeline", str(plan_log)]
    done = subprocess.run([*command, "--trace", str(trace)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    chunks = [e for e in events if e["name"] == "widens" and e.get("cat") == "chunk"]
    assert sorted(e["args"]["tokens"] for e in chunks) == [600, 900, 900]
