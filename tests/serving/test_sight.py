"""What people see of a running pool: its log, its metrics, and the timeline of its plan log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sglang_cdsp.controller.exported.definitions import METRICS, PREFIX, Kind
from tests.monitoring.dashboards import queries, scraping
from tests.monitoring.prometheus import PROGRAM, ask, prometheus, value, wait_for
from tests.serving.asking import in_hand, until
from tests.serving.client import Client, text_tokens
from tests.serving.streaming import stream_all

PLAN = [(600, [0]), (900, [0, 1])]
PROMPTS, NEW_TOKENS = (6000, 900, 4000, 300, 3000, 2000), 24
AGREES = 0.05
FINISHED = "requests_total{cause=none,outcome=finished}"


def samples(client: Client, server: str) -> Iterator[Sample]:
    """Everything that a server shows."""
    text = requests.get(f"{client.servers.urls[server]}/metrics", timeout=10).text
    for family in text_string_to_metric_families(text):
        yield from family.samples


def scraped(client: Client) -> dict[str, float]:
    """The pool's samples without the labels that all have; ``name{labels}`` to value."""
    found: dict[str, float] = {}
    for sample in samples(client, "prefill"):
        if sample.name.startswith(PREFIX):
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "pid")}
            shown = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
            found[f"{sample.name.removeprefix(PREFIX)}{{{shown}}}"] = sample.value
    return found


def decodes(client: Client) -> dict[str, float]:
    """SGLang's own samples of the decode server, summed over labels."""
    found: dict[str, float] = {}
    for sample in samples(client, "decode"):
        found[sample.name] = found.get(sample.name, 0.0) + sample.value
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
    assert until(lambda: scraped(client)[FINISHED] == before[FINISHED] + 1)
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


def test_after_a_load_the_metrics_agree_with_what_the_client_counted(
    client: Client, checkpoint: Path
) -> None:
    """Requests and tokens exactly; TTFT at the pool; TPOT at decode, which alone can know it."""
    assert until(lambda: in_hand(client) == 0)
    prompts = [text_tokens(checkpoint, length, 130 + length) for length in PROMPTS]
    before, decode_before = scraped(client), decodes(client)
    answers = stream_all(client.servers, prompts, NEW_TOKENS)
    expected = before[FINISHED] + len(prompts)
    assert until(lambda: scraped(client)[FINISHED] == expected)
    after, decode_after = scraped(client), decodes(client)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    def decode_more(name: str) -> float:
        return decode_after[f"sglang:{name}"] - decode_before.get(f"sglang:{name}", 0.0)

    assert [answer.prompt_tokens for answer in answers] == list(PROMPTS)
    ends = {name: more(name) for name in after if name.startswith("requests_total")}
    assert ends == {name: len(prompts) if name == FINISHED else 0 for name in ends}
    assert more("prompt_tokens_total{outcome=finished}") == sum(PROMPTS)
    assert more("kv_transferred_tokens_total{}") == sum(PROMPTS)
    chunk_tokens = sum(more(name) for name in after if name.startswith("chunk_tokens_total"))
    assert chunk_tokens == sum(PROMPTS)
    assert decode_more("generation_tokens_total") == sum(a.output_tokens for a in answers)

    assert more("ttft_seconds_count{}") == len(prompts)
    ttft_s = more("ttft_seconds_sum{}") / len(prompts)
    latency = "inter_token_latency_seconds"
    tpot_s = decode_more(f"{latency}_sum") / decode_more(f"{latency}_count")
    client_ttft_s = fmean(a.ttft_s for a in answers)
    client_tpot_s = fmean(a.tpot_s for a in answers)
    print(f"TTFT {ttft_s:.4f} s here, {client_ttft_s:.4f} s at the client")
    print(f"TPOT {tpot_s:.5f} s here, {client_tpot_s:.5f} s at the client")
    assert ttft_s == pytest.approx(client_ttft_s, rel=AGREES)
    assert tpot_s == pytest.approx(client_tpot_s, rel=AGREES)


@pytest.mark.skipif(PROGRAM is None, reason="no prometheus on the PATH")
def test_every_query_of_the_dashboard_has_data_of_a_real_pool(
    client: Client, checkpoint: Path, tmp_path: Path
) -> None:
    prefill, decode = (
        client.servers.urls[name].removeprefix("http://") for name in ("prefill", "decode")
    )
    config = scraping(prefill, decode, every="2s")
    with prometheus(config, tmp_path) as url:
        wait_for(url, f"sum({PREFIX}requests_total)", 1.0)
        shown = value(url, f'sum({PREFIX}requests_total{{outcome="finished"}})')
        client.pool(text_tokens(checkpoint, 1500, 140), PLAN)
        assert shown is not None
        wait_for(url, f'sum({PREFIX}requests_total{{outcome="finished"}})', shown + 1)
        # A rate takes two values.
        for seen in (f"{PREFIX}seats", "sglang:generation_tokens_total"):
            wait_for(url, f"max(count_over_time({seen}[5m]))", 2.0)
        wait_for(url, 'min(count_over_time(up{job=~"sglang-.*"}[5m]))', 3.0)
        empty = [query for query in queries() if not ask(url, query)]
        assert empty == []


def test_the_log_tells_what_runs_and_what_ended(
    client: Client, before_and_after: tuple[dict[str, float], dict[str, float]]
) -> None:
    (start,) = [line for line in log_lines(client) if "KV tokens each" in line]
    assert "policy cdsp-late" in start
    assert "latency model " in start  # measured, or kept by a start before
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
