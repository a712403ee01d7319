"""Every metric that the pool exports. docs/metrics.md is written from this table.

Names follow Prometheus's conventions ("Metric and label naming"): base units, counters end in
``_total``. What concerns an instance has the label ``seat``: Prometheus itself puts ``instance`` on
whatever it scrapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PREFIX = "sglang_cdsp:"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 400.0)
"""From a short prompt on a GPU to a long one on CPUs."""
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
CHUNKS = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Kind(Enum):
    """Kinds of metrics, as Prometheus names them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: without the prefix.
        kind: of what Prometheus knows.
        text: what it says, one line.
        labels: beside those that all have, ``model_name`` and what ``--extra-metric-labels`` names.
        buckets: upper bounds of a histogram's.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """As it is scraped."""
        return PREFIX + self.name


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, labels, buckets)


SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Requests": (
        _counter(
            "requests_total",
            "Ended requests, by outcome (finished, aborted, failed) and by whose doing it was.",
            "outcome",
            "cause",
        ),
        _counter("prompt_tokens_total", "Prompt tokens of ended requests.", "outcome"),
        _gauge(
            "waiting_requests",
            "Requests without a plan: they wait for decode's pages, or for the policy.",
            "reason",
        ),
        _gauge("waiting_tokens", "Prompt tokens of the requests without a plan."),
        _gauge(
            "running_requests",
            "Requests with a plan: queued for their next chunk, computing, in SGLang's own "
            "batches from their prompt on, decoding at their home, or ending (writes to decode in "
            "flight, slots not free yet).",
            "state",
        ),
        _histogram(
            "queue_seconds",
            "From arrival to the plan (stage plan), and from there to the first chunk (turn); "
            "without requests that were computed anew after their first token.",
            "stage",
        ),
        _histogram("ttft_seconds", "From arrival to the first token, on the prefill side."),
        _histogram("planned_ttft_seconds", "The same as the last plan before it expected it."),
        _histogram(
            "ttft_ratio",
            "Measured TTFT by planned TTFT of each request: 1 is as planned.",
            buckets=RATIOS,
        ),
    ),
    "Plans and chunks": (
        _histogram("request_chunks", "Chunks of a finished request.", buckets=CHUNKS),
        _counter("chunks_total", "Computed chunks by SP size.", "sp_size"),
        _counter("chunk_tokens_total", "Tokens of computed chunks by SP size.", "sp_size"),
        _histogram(
            "chunk_seconds",
            "Time of a chunk, without that in which it stood aside for others.",
            "sp_size",
        ),
        _histogram("planned_chunk_seconds", "The same as it was planned.", "sp_size"),
        _histogram(
            "chunk_ratio",
            "Measured by planned time of each chunk: 1 is as planned.",
            "sp_size",
            buckets=RATIOS,
        ),
        _counter("replans_total", "Rests of plans that were planned anew."),
        _counter(
            "recalls_total",
            "Plans taken back whose requests got another one: an instance went, SGLang retracted "
            "them, or a cached prefix was not there any more.",
        ),
        _counter(
            "resumed_requests_total",
            "Requests that were computed anew from their prompt and the output that they had.",
        ),
        _counter("passing_requests_total", "Requests that ran between the layers of others."),
        _counter("stopped_tasks_total", "Tasks that were ended before their last chunk had."),
        _counter(
            "give_ways_total",
            "Times that a chunk stood aside for something else, at the leading rank.",
            "seat",
        ),
        _histogram("give_way_seconds", "For how long a chunk stood aside in all; 0 for most."),
    ),
    "Cached prefixes": (
        _counter(
            "reused_tokens_total",
            "Prompt tokens of finished requests that plans took from an instance's prefix cache.",
        ),
        _counter(
            "unused_cached_tokens_total",
            "Those that some instance had cached beyond them: computed again, as that was cheaper.",
        ),
        _counter("prefix_misses_total", "Requests whose prefix was not there any more."),
        _counter(
            "prefix_copies_total",
            "Cached prefixes that were copied to another instance, by what for: a plan that starts "
            "from it, or its use by many.",
            "reason",
        ),
        _counter("copied_tokens_total", "Tokens whose KV travelled for them."),
        _counter("copy_seconds_total", "Seconds that they took, from when they were asked for."),
        _counter("failed_prefix_copies_total", "Copies that did not arrive."),
        _gauge("cached_pages", "Pages in an instance's prefix cache, as is known.", "seat"),
    ),
    "The planner": (
        _gauge("improvement_rate", "Fraction by which a larger SP size must cut TTFT, now."),
        _gauge("arrival_rate", "Requests a second over the planner's sliding window."),
        _gauge(
            "latency_correction",
            "Factor on the latency model, learnt from measured chunks; 1 is the model as given.",
            "sp_size",
        ),
    ),
    "Links and transfers": (
        _counter(
            "link_sent_bytes_total",
            "Bytes sent to other instances, all ranks: circulating KV and Q, and history.",
            "seat",
        ),
        _counter(
            "link_wait_seconds_total",
            "Seconds in which chunks waited for the links; others may have run meanwhile.",
            "seat",
        ),
        _counter("history_moves_total", "Chunks in which history went to new holders.", "seat"),
        _counter("history_moved_tokens_total", "Tokens of history that went to others.", "seat"),
        _counter("kv_transferred_tokens_total", "Prompt tokens whose KV is with decode."),
        _histogram(
            "kv_transfer_seconds", "From the first token until all writes to decode had ended."
        ),
        _counter("moved_requests_total", "Times that a running request went to another instance."),
        _counter("moved_tokens_total", "Tokens whose KV went along."),
        _counter(
            "move_cached_tokens_total",
            "Tokens whose KV did not go along, as the other instance had it cached.",
        ),
        _counter(
            "move_seconds_total",
            "Seconds in which requests were on their way, out of one batch and not in the next.",
        ),
        _gauge("decode_ranks", "Ranks of decode servers that can be reached."),
    ),
    "Instances": (
        _gauge("queue_ahead_seconds", "Planned work of an instance that has not ended.", "seat"),
        _gauge("free_kv_tokens", "KV slots that are promised to nobody.", "seat"),
        _gauge("kv_capacity_tokens", "KV slots for requests.", "seat"),
        _counter(
            "busy_seconds_total",
            "Seconds in which an instance ran a chunk or one-instance requests; what is left of "
            "the time is its idle share.",
            "seat",
        ),
        _gauge("seats", "Instances that the pool should have."),
        _gauge("seats_up", "Instances that take requests."),
        _gauge("seat_up", "Whether an instance takes requests: 1 or 0.", "seat"),
        _gauge(
            "seat_role",
            "The role of an instance: 1 for the one that it has (prefill: it takes chunks; decode: "
            "requests decode there; both), 0 for the others.",
            "seat",
            "role",
        ),
        _gauge(
            "decoding_requests",
            "Requests that SGLang itself runs on an instance, or is about to by their plans.",
            "seat",
        ),
        _counter("seat_restarts_total", "Times that an instance came back.", "seat"),
        _counter("seat_deaths_total", "Lives of instances that were given up.", "seat", "cause"),
        _counter("lost_requests_total", "Requests that ended because of a lost instance."),
    ),
}

METRICS = tuple(metric for section in SECTIONS.values() for metric in section)

ENDS: tuple[tuple[str, str, str], ...] = (
    ("finished", "none", "it was served"),
    ("aborted", "client", "its client left before it had ended here, or asked for it"),
    ("aborted", "decode", "decode gave it up, or its decode server is gone"),
    ("failed", "request", "it asked for what cannot be served (400)"),
    ("failed", "capacity", "a full queue, or too long a wait (503)"),
    ("failed", "instance", "an instance was lost that had a part of it (503)"),
    ("failed", "server", "anything else (500): the server's log says what"),
)
"""Outcomes and causes of ends, and what they mean."""
