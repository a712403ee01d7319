"""A run as files: request lines, bench_serving's object, and a Chrome trace.

`requests-NAME.jsonl` has one line a request with the names of bench_serving's own record of a
request; `bench_serving.jsonl` has one line a policy, as `sglang.bench_serving --output-file`
appends it; `trace-NAME.json` opens in Perfetto or chrome://tracing. The gaps between all tokens
(`itl`, `itls`), by far the most of it, and the other lists of `--output-details` are written only
when they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sglang_cdsp.simulator.engine import Result
from sglang_cdsp.simulator.metrics import token_gaps, ttfts
from sglang_cdsp.simulator.types import Record, gaps

MICROSECONDS = 1e6


def write_outputs(
    results: Mapping[str, Result], instances_per_node: int, folder: Path, *, tokens: bool = False
) -> dict[Path, str]:
    """Writes the three kinds of files for every policy's result.

    Args:
        results: by policy.
        instances_per_node: for the trace's processes.
        folder: made if need be.
        tokens: write the gap before every token as well.

    Returns:
        What was written: each file, and in a few words what it holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = folder / "bench_serving.jsonl"
    lines = [json.dumps(bench_serving(name, r, tokens=tokens)) for name, r in results.items()]
    summary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = {summary: "a line a policy, in the form of sglang.bench_serving"}
    for name, result in results.items():
        stem = re.sub(r"\W+", "-", name)
        requests, trace = folder / f"requests-{stem}.jsonl", folder / f"trace-{stem}.json"
        with requests.open("w", encoding="utf-8") as file:
            rows = (request_line(r, tokens=tokens) for r in result.records)
            file.writelines(json.dumps(row) + "\n" for row in rows)
        written[requests] = f"a line a request under {name}, seconds and tokens"
        events = json.dumps({"traceEvents": list(trace_events(result, instances_per_node))})
        trace.write_text(events, encoding="utf-8")
        written[trace] = f"chunks and phases under {name}, for https://ui.perfetto.dev"
    return written


def request_line(record: Record, *, tokens: bool = False) -> dict[str, Any]:
    """One request: bench_serving's names, then what only a pool knows. Seconds and tokens.

    `tbt_mean` and `tbt_max` are of the gaps between its tokens, None where there is only one;
    `itl`, with `tokens` only, are all of them.
    """
    request = record.request
    between = token_gaps([record])
    return {
        "rid": request.rid,
        "start_time": request.arrival_s,
        "prompt_len": request.prompt_tokens,
        "output_len": _output_tokens(record),
        "success": _completed(record),
        "ttft": record.ttft_s,
        **({"itl": between.tolist()} if tokens else {}),
        "tbt_mean": float(between.mean()) if len(between) else None,
        "tbt_max": float(between.max()) if len(between) else None,
        "latency": record.end_s - request.arrival_s if record.end_s is not None else None,
        "error": record.error,
        "bound_s": record.bound_s,
        "chunks": [chunk.to_dict() for chunk in record.chunks],
        "transferred_s": record.transferred_s,
        "decode_instance": record.decode_instance,
        "decode_s": record.decode_s,
    }


def bench_serving(name: str, result: Result, *, tokens: bool = False) -> dict[str, Any]:
    """One run as bench_serving reports it; its `tag` is the policy. `tokens`: with details."""
    records = result.records
    done = [r for r in records if _completed(r)]
    start = records[0].request.arrival_s
    duration = max((r.end_s - start for r in done if r.end_s is not None), default=0.0)
    inputs = sum(r.request.prompt_tokens for r in done)
    outputs = sum(map(_output_tokens, done))
    latencies = np.array([r.end_s - r.request.arrival_s for r in done if r.end_s is not None])
    first = ttfts(done)
    itls = [token_gaps([r]) for r in records]
    done_gaps = [g for g, r in zip(itls, records, strict=True) if len(g) and _completed(r)]
    per_second = 1 / duration if duration > 0 else 0.0
    return {
        "tag": name,
        "backend": "sglang-cdsp-simulator",
        "duration": duration,
        "completed": len(done),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(done) * per_second,
        "input_throughput": inputs * per_second,
        "output_throughput": outputs * per_second,
        "total_throughput": (inputs + outputs) * per_second,
        "concurrency": float(latencies.sum()) * per_second,
        **_milliseconds("e2e_latency", latencies),
        **_milliseconds("ttft", first),
        **_milliseconds("tpot", np.array([g.mean() for g in done_gaps])),
        **_milliseconds("itl", np.concatenate(done_gaps) if done_gaps else np.array([])),
        **(_details(records, itls) if tokens else {}),
    }


def _details(records: Sequence[Record], itls: Sequence[np.ndarray]) -> dict[str, Any]:
    """What `--output-details` adds, a list of one entry a request each."""
    return {
        "input_lens": [r.request.prompt_tokens for r in records],
        "output_lens": [_output_tokens(r) for r in records],
        "ttfts": [r.ttft_s or 0.0 for r in records],
        "itls": [g.tolist() for g in itls],
        "errors": [r.error for r in records],
    }


def trace_events(result: Result, instances_per_node: int) -> Iterator[dict[str, Any]]:
    """Chrome trace events: chunks on a track per instance, phases on a track per request.

    Processes are the nodes, threads their instances; the phases (wait, prefill, transfer, decode)
    are asynchronous events of process -1. Times are microseconds since the run's start.
    """
    for instance in range(len(result.busy_s)):
        node = instance // instances_per_node
        track = {"pid": node, "tid": instance, "ph": "M"}
        yield {**track, "name": "process_name", "args": {"name": f"node {node}"}}
        yield {**track, "name": "thread_name", "args": {"name": f"instance {instance}"}}
    yield {"pid": -1, "tid": 0, "ph": "M", "name": "process_name", "args": {"name": "requests"}}
    for record in result.records:
        yield from _chunk_events(record, instances_per_node)
        yield from _phase_events(record)


def _chunk_events(record: Record, instances_per_node: int) -> Iterator[dict[str, Any]]:
    for index, chunk in enumerate(record.chunks):
        for instance in chunk.instances:
            yield {
                "name": record.request.rid,
                "cat": "chunk",
                "ph": "X",
                "pid": instance // instances_per_node,
                "tid": instance,
                "ts": chunk.start_s * MICROSECONDS,
                "dur": (chunk.end_s - chunk.start_s) * MICROSECONDS,
                "args": {"chunk": index, "tokens": chunk.tokens, "sp_size": chunk.sp_size},
            }


def _phase_events(record: Record) -> Iterator[dict[str, Any]]:
    phases = ("wait", "prefill", "transfer", "decode")
    moments = (
        record.request.arrival_s,
        record.chunks[0].start_s if record.chunks else None,
        record.first_token_s,
        record.decode_s,
        record.end_s,
    )
    for name, start, end in zip(phases, moments, moments[1:], strict=False):
        if start is None or end is None:
            return
        common = {"name": name, "cat": "request", "id": record.request.rid, "pid": -1, "tid": 0}
        yield {**common, "ph": "b", "ts": start * MICROSECONDS}
        yield {**common, "ph": "e", "ts": end * MICROSECONDS}


def _completed(record: Record) -> bool:
    return record.end_s is not None and not record.error


def _output_tokens(record: Record) -> int:
    return 1 + sum(count for _, count in gaps(record)) if record.first_token_s is not None else 0


def _milliseconds(name: str, seconds: np.ndarray) -> dict[str, float]:
    values = seconds * 1000 if len(seconds) else np.zeros(1)
    p90, p95, p99 = np.percentile(values, (90, 95, 99)).tolist()
    return {
        f"mean_{name}_ms": float(values.mean()),
        f"median_{name}_ms": float(np.median(values)),
        f"std_{name}_ms": float(values.std()),
        f"p90_{name}_ms": p90,
        f"p95_{name}_ms": p95,
        f"p99_{name}_ms": p99,
    }
