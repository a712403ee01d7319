"""Writes the Grafana dashboard: `python dashboard.py`. Panels are data here, JSON is their form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "grafana" / "dashboards" / "json" / "sglang-cdsp-dashboard.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
M = "sglang_cdsp:"
MODEL = 'model_name=~"$model"'
DECODE = 'job="sglang-decode"'
"""Of `prometheus.yaml`. A prefill server has SGLang's metrics of answers, too."""
WINDOW = "$__rate_interval"
COLUMNS, WIDTH, HEIGHT = 3, 8, 7
"""Of Grafana's grid of 24 columns."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: what it shows.
        unit: Grafana's name of a unit.
        queries: legend to PromQL.
        text: what to read from it.
        stacked: areas on top of each other.
    """

    title: str
    unit: str
    queries: dict[str, str]
    text: str = ""
    stacked: bool = False


def series(name: str) -> str:
    """A series of the pool, or SGLang's own of decode servers, for the chosen models."""
    if name.startswith("sglang:"):
        return f"{name}{{{MODEL},{DECODE}}}"
    return f"{M}{name}{{{MODEL}}}"


def rate(name: str, *by: str) -> str:
    """A counter a second, summed but for some labels."""
    return f"sum by ({','.join(by)}) (rate({series(name)}[{WINDOW}]))"


def quantile(share: float, name: str, *by: str) -> str:
    """A quantile of a histogram."""
    labels = ",".join(("le", *by))
    rates = f"rate({series(name + '_bucket')}[{WINDOW}])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rates}))"


def mean(name: str, *by: str) -> str:
    """The mean of a histogram's values."""
    return f"{rate(name + '_sum', *by)} / {rate(name + '_count', *by)}"


def quantiles(name: str) -> dict[str, str]:
    """P50, P90 and P99."""
    return {f"P{round(100 * share)}": quantile(share, name) for share in (0.5, 0.9, 0.99)}


ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel(
            "TTFT on the prefill side",
            "s",
            {**quantiles("ttft_seconds"), "planned P50": quantile(0.5, "planned_ttft_seconds")},
        ),
        Panel(
            "Waiting and running",
            "short",
            {
                "waits for {{reason}}": f"sum by (reason) ({series('waiting_requests')})",
                "{{state}}": f"sum by (state) ({series('running_requests')})",
            },
            stacked=True,
        ),
        Panel(
            "Ends by outcome and cause",
            "reqps",
            {"{{outcome}} ({{cause}})": rate("requests_total", "outcome", "cause")},
            "instance: lost with one; capacity: a full queue, or waited too long",
        ),
        Panel(
            "Queue time",
            "s",
            {
                "P50 until {{stage}}": quantile(0.5, "queue_seconds", "stage"),
                "P99 until {{stage}}": quantile(0.99, "queue_seconds", "stage"),
            },
            "plan: until the policy has bound it; turn: from there to its first chunk",
        ),
        Panel("Prefilled tokens", "short", {"tokens/s": rate("prompt_tokens_total")}),
        Panel("Waiting tokens", "short", {"tokens": f"sum({series('waiting_tokens')})"}),
    ),
    "Cached prefixes": (
        Panel(
            "Prompt tokens by where they came from",
            "short",
            {
                "reused/s": rate("reused_tokens_total"),
                "cached elsewhere and computed/s": rate("unused_cached_tokens_total"),
                "computed/s": rate("chunk_tokens_total"),
            },
            "reused: taken from an instance's prefix cache",
        ),
        Panel("Prefixes that were gone", "reqps", {"misses": rate("prefix_misses_total")}),
        Panel(
            "Copies of prefixes",
            "reqps",
            {
                "{{reason}}": rate("prefix_copies_total", "reason"),
                "failed": rate("failed_prefix_copies_total"),
            },
            "plan: a plan starts from it; use: many ask for it",
        ),
        Panel("Copied tokens", "short", {"tokens/s": rate("copied_tokens_total")}),
        Panel(
            "Time of a copy",
            "s",
            {"mean": f"{rate('copy_seconds_total')} / {rate('prefix_copies_total')}"},
            "from when it is asked for until it is cached there",
        ),
        Panel(
            "Cached pages",
            "short",
            {"instance {{seat}}": f"max by (seat) ({series('cached_pages')})"},
        ),
    ),
    "Plans": (
        Panel(
            "Chunks by SP size",
            "cps",
            {"SP {{sp_size}}": rate("chunks_total", "sp_size")},
            "",
            True,
        ),
        Panel(
            "Tokens by SP size",
            "short",
            {"SP {{sp_size}}": rate("chunk_tokens_total", "sp_size")},
            "",
            True,
        ),
        Panel("Chunks a request", "short", {"mean": mean("request_chunks")}),
        Panel(
            "Measured by planned",
            "short",
            {
                "TTFT, median": quantile(0.5, "ttft_ratio"),
                "TTFT, P99": quantile(0.99, "ttft_ratio"),
                "chunks at SP {{sp_size}}, median": quantile(0.5, "chunk_ratio", "sp_size"),
            },
            "1 is as planned",
        ),
        Panel(
            "Chunk times",
            "s",
            {
                "SP {{sp_size}}": mean("chunk_seconds", "sp_size"),
                "SP {{sp_size}} as planned": mean("planned_chunk_seconds", "sp_size"),
            },
        ),
        Panel(
            "Improvement rate and load",
            "short",
            {
                "improvement rate": f"max({series('improvement_rate')})",
                "requests/s": f"max({series('arrival_rate')})",
            },
        ),
        Panel(
            "Latency model's correction",
            "short",
            {"SP {{sp_size}}": f"max by (sp_size) ({series('latency_correction')})"},
            "far from 1: measure the pool anew with `python -m sglang_cdsp profile`",
        ),
        Panel(
            "Plans that changed",
            "cps",
            {
                "planned anew": rate("replans_total"),
                "recalled": rate("recalls_total"),
                "computed anew": rate("resumed_requests_total"),
                "passed others": rate("passing_requests_total"),
                "stopped": rate("stopped_tasks_total"),
            },
        ),
        Panel(
            "Standing aside",
            "s",
            {
                "seconds a second": rate("give_way_seconds_sum"),
                "P99 of a chunk": quantile(0.99, "give_way_seconds"),
                "times a second, instance {{seat}}": rate("give_ways_total", "seat"),
            },
            "how long, and how often, chunks let others go on",
        ),
    ),
    "Instances": (
        Panel(
            "Idle share",
            "percentunit",
            {"instance {{seat}}": f"1 - {rate('busy_seconds_total', 'seat')}"},
        ),
        Panel(
            "Work ahead",
            "s",
            {"instance {{seat}}": f"max by (seat) ({series('queue_ahead_seconds')})"},
        ),
        Panel(
            "Free KV slots",
            "percentunit",
            {
                "instance {{seat}}": f"sum by (seat) ({series('free_kv_tokens')})"
                f" / sum by (seat) ({series('kv_capacity_tokens')})"
            },
        ),
        Panel(
            "Seats",
            "short",
            {
                "up": f"sum({series('seats_up')})",
                "of": f"sum({series('seats')})",
                "instance {{seat}}": f"min by (seat) ({series('seat_up')})",
            },
        ),
        Panel(
            "Deaths and restarts",
            "short",
            {
                "instance {{seat}}: {{cause}}": "sum by (seat, cause) "
                f"(increase({series('seat_deaths_total')}[{WINDOW}]))",
                "instance {{seat}} is back": "sum by (seat) "
                f"(increase({series('seat_restarts_total')}[{WINDOW}]))",
                "requests lost": f"sum(increase({series('lost_requests_total')}[{WINDOW}]))",
            },
        ),
        Panel(
            "Roles",
            "short",
            {"{{role}}": f"sum by (role) ({series('seat_role')})"},
            "instances that take chunks, that decode, and that do both",
            stacked=True,
        ),
        Panel(
            "Decoding",
            "short",
            {"instance {{seat}}": f"sum by (seat) ({series('decoding_requests')})"},
            "requests in SGLang's own batches; none where decode servers do it",
            stacked=True,
        ),
        Panel("Decode ranks in contact", "short", {"ranks": f"sum({series('decode_ranks')})"}),
    ),
    "Links and transfers": (
        Panel(
            "Sent to other instances",
            "Bps",
            {"instance {{seat}}": rate("link_sent_bytes_total", "seat")},
        ),
        Panel(
            "Waiting for links",
            "percentunit",
            {"instance {{seat}}": rate("link_wait_seconds_total", "seat")},
            "share of time in which a chunk waited for a partner or for bytes",
        ),
        Panel(
            "History moved",
            "short",
            {
                "tokens/s from instance {{seat}}": rate("history_moved_tokens_total", "seat"),
                "moves/s": rate("history_moves_total"),
            },
        ),
        Panel(
            "KV to decode",
            "short",
            {"tokens/s": rate("kv_transferred_tokens_total")},
        ),
        Panel("From first token to all KV", "s", quantiles("kv_transfer_seconds")),
        Panel(
            "Running requests that moved",
            "short",
            {
                "moves/s": rate("moved_requests_total"),
                "tokens/s": rate("moved_tokens_total"),
                "tokens/s that were cached there": rate("move_cached_tokens_total"),
                "seconds a second on their way": rate("move_seconds_total"),
            },
            "one server: from instances that turn or drain to those that decode",
        ),
    ),
    "Decode servers": (
        Panel(
            "TPOT",
            "s",
            {
                **quantiles("sglang:inter_token_latency_seconds"),
                "mean": mean("sglang:inter_token_latency_seconds"),
            },
            "seconds a token after the first, by SGLang's own metrics of the decode servers",
        ),
        Panel("Generated tokens", "short", {"tokens/s": rate("sglang:generation_tokens_total")}),
    ),
}


def target(letter: str, legend: str, query: str) -> dict[str, Any]:
    """One query of a panel."""
    return {"datasource": SOURCE, "refId": letter, "legendFormat": legend, "expr": query}


def panel(number: int, x: int, y: int, told: Panel) -> dict[str, Any]:
    """A panel as Grafana wants it."""
    custom: dict[str, Any] = {"showPoints": "never", "fillOpacity": 8}
    if told.stacked:
        custom |= {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    return {
        "id": number,
        "type": "timeseries",
        "title": told.title,
        "description": told.text,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": told.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            target(chr(ord("A") + n), legend, query)
            for n, (legend, query) in enumerate(told.queries.items())
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []}
        )
        for n, told in enumerate(row):
            x, line = n % COLUMNS * WIDTH, n // COLUMNS
            panels.append(panel(len(panels) + 1, x, y + 1 + line * HEIGHT, told))
        y += 1 + -(-len(row) // COLUMNS) * HEIGHT
    model = {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({M}seats, model_name)", "refId": "models"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "sglang-cdsp",
        "title": "SGLang CDSP pool",
        "tags": ["sglang", "cdsp"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [model]},
        "panels": panels,
    }


def text() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
