"""Sends a burst of prompts with the ``openai`` client and measures what comes back."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai


@dataclass(frozen=True)
class Answer:
    """One finished request.

    Attributes:
        rid: the request's id, as in the plan log.
        prompt_tokens: as the server counted them.
        output_tokens: generated.
        ttft_s: seconds until the first token reached the client.
        tpot_s: seconds per further token, 0 when there was none.
        end_s: seconds from the start of the burst to the last token.
        text: what was generated.
    """

    rid: str
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float
    end_s: float
    text: str


def send_burst(
    url: str,
    prompts: Sequence[str],
    *,
    output_tokens: int,
    rid_prefix: str,
    at_s: Sequence[float] = (),
    on_answer: Callable[[Answer], None] = lambda answer: None,
    timeout_s: float = 600.0,
) -> list[Answer]:
    """Send all prompts, streaming, and wait for all answers.

    Args:
        url: of the server or router, without ``/v1``.
        prompts: texts.
        at_s: when each is sent, seconds from the start of the burst; empty for all at once.
        output_tokens: to generate for each, greedily.
        rid_prefix: request ids are this and a number.
        on_answer: called as answers finish.
        timeout_s: seconds that one request may take.

    Returns:
        The answers in the order of ``prompts``.
    """
    due_s = at_s or [0.0] * len(prompts)
    return asyncio.run(
        _send_all(url, prompts, due_s, output_tokens, rid_prefix, on_answer, timeout_s)
    )


async def _send_all(
    url: str,
    prompts: Sequence[str],
    due_s: Sequence[float],
    output_tokens: int,
    rid_prefix: str,
    on_answer: Callable[[Answer], None],
    timeout_s: float,
) -> list[Answer]:
    started = time.perf_counter()
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=timeout_s, max_retries=0
    ) as client:

        async def one(index: int, prompt: str) -> Answer:
            rid = f"{rid_prefix}{index}"
            await asyncio.sleep(started + due_s[index] - time.perf_counter())
            answer = await _stream(client, prompt, output_tokens, rid, started)
            on_answer(answer)
            return answer

        return list(await asyncio.gather(*(one(i, p) for i, p in enumerate(prompts))))


async def _stream(
    client: openai.AsyncOpenAI, prompt: str, output_tokens: int, rid: str, started: float
) -> Answer:
    sent = time.perf_counter()
    first = last = 0.0
    pieces: list[str] = []
    usage: Any = None
    stream = await client.completions.create(
        model="default",
        prompt=prompt,
        max_tokens=output_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"rid": rid, "ignore_eos": True},
    )
    async for event in stream:
        usage = event.usage or usage
        if event.choices and (event.choices[0].text or event.choices[0].finish_reason):
            last = time.perf_counter()
            first = first or last
            pieces.append(event.choices[0].text or "")
    if usage is None or not first:
        raise RuntimeError(f"request {rid} ended without an answer; see the servers' logs")
    generated = usage.completion_tokens
    return Answer(
        rid=rid,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=generated,
        ttft_s=first - sent,
        tpot_s=(last - first) / (generated - 1) if generated > 1 else 0.0,
        end_s=last - started,
        text="".join(pieces),
    )


def describe_plan(entry: Mapping[str, Any] | None) -> str:
    """Write an entry's chunks as ``tokens@SP[instances]``, or ``-`` without an entry."""
    if entry is None or not entry["chunks"]:
        return "-"
    return " ".join(
        f"{chunk['tokens']}@{len(chunk['instances'])}[{','.join(map(str, chunk['instances']))}]"
        for chunk in entry["chunks"]
    )


def queue_seconds(entry: Mapping[str, Any] | None) -> float | None:
    """Return the seconds from an entry's arrival to the start of its first chunk, if it ran."""
    if entry is None or not entry["chunks"]:
        return None
    start: float | None = entry["chunks"][0]["start_s"]
    return start


def chunks_at_once(entries: Sequence[Mapping[str, Any]]) -> int:
    """Return the largest number of requests that had a chunk running at the same moment.

    Args:
        entries: of the plan log, with ``arrival_s`` on one clock.
    """
    edges: list[tuple[float, int]] = []
    for entry in entries:
        for chunk in entry["chunks"]:
            if chunk["start_s"] is not None and chunk["end_s"] is not None:
                edges.append((entry["arrival_s"] + chunk["start_s"], 1))
                edges.append((entry["arrival_s"] + chunk["end_s"], -1))
    running = most = 0
    for _, change in sorted(edges):  # at equal times ends come first
        running += change
        most = max(most, running)
    return most


def format_table(answers: Sequence[Answer], entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay answers and their plans out as a table, shortest prompt first."""
    head = ("prompt tokens", "queue s", "TTFT s", "TPOT ms", "plan: tokens@SP[instances]")
    rows = [head]
    for answer in sorted(answers, key=lambda answer: answer.prompt_tokens):
        entry = entries.get(answer.rid)
        queue = queue_seconds(entry)
        rows.append(
            (
                str(answer.prompt_tokens),
                "-" if queue is None else f"{queue:.2f}",
                f"{answer.ttft_s:.2f}",
                f"{answer.tpot_s * 1000:.1f}",
                describe_plan(entry),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:4], widths, strict=True))
        + f"  {row[4]}"
        for row in rows
    )
