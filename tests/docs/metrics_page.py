"""Writes docs/metrics.md: `python -m tests.docs.metrics_page > docs/metrics.md`."""

from __future__ import annotations

from sglang_cdsp.controller.exported.definitions import (
    ENDS,
    SECTIONS,
    Metric,
)

HEAD = """\
# Metrics

With SGLang's `--enable-metrics` the prefill server's `/metrics` has these beside SGLang's own. They
are the controller's: one process knows the whole pool. All have the label `model_name`, and those
of `--extra-metric-labels`. What concerns an instance has the label `seat`, its number: Prometheus
puts `instance` on whatever it scrapes. Histograms of times are in seconds. Series that are known of
at the start are there from then on, at 0.

A request is counted when it has ended, with all of its chunks; gauges are set once a second. What
schedulers count (links, giving way, moves of history) comes with the report of a chunk that ended.
The pool's own probes are no requests.

[examples/monitoring](../examples/monitoring/README.md) has a Grafana dashboard, and the Prometheus
configuration that it needs: a Prometheus before 3.0 gets the colons as underscores from newer
releases of `prometheus_client`. What only decode can know (TPOT, generated tokens) is among
SGLang's own metrics of the decode server: `sglang:inter_token_latency_seconds` and others. This
page is written from the table in `sglang_cdsp/controller/exported/definitions.py`:

    python -m tests.docs.metrics_page > docs/metrics.md
"""

TAIL = """\
## Ends

| outcome | cause | what it means |
|---|---|---|
"""


def row(metric: Metric) -> str:
    """A metric's line."""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    return f"| `{metric.full_name}` | {metric.kind.value} | {labels} | {metric.text} |"


def page() -> str:
    """The page's text."""
    blocks = [HEAD]
    for title, metrics in SECTIONS.items():
        rows = "\n".join(map(row, metrics))
        blocks.append(
            f"## {title}\n\n| metric | kind | labels | what it says |\n|---|---|---|---|\n{rows}\n"
        )
    ends = "\n".join(f"| {outcome} | {cause} | {means} |" for outcome, cause, means in ENDS)
    blocks.append(f"{TAIL}{ends}\n")
    return "\n".join(blocks)


if __name__ == "__main__":
    print(page(), end="")
