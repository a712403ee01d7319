"""Chunks whose shards fit the memory that a forward's activations may take.

KV of a prompt may fit where the activations of its forward do not: a token's are some 100 kB in an
8B model, and its KV of one layer 4 kB. A chunk that is too long for its group is run as several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sglang_cdsp.planner.memory import longest_chunk
from sglang_cdsp.planner.types import Plan, PlannedChunk


def within_shards(plan: Plan, most_tokens: int | None, page_size: int) -> Plan:
    """A plan of which no member computes more than `most_tokens` tokens in one chunk.

    A chunk that is too long becomes consecutive chunks of the same group: each but the last as
    long as its shards may be, all times in proportion to tokens. Where the pieces begin is a page
    border if the chunk begins on one, and the plan needs no more KV slots. Two pages
    a member are the least that a piece has. `most_tokens` is None for no limit.
    """
    if most_tokens is None:
        return plan
    pieces = [p for chunk in plan.chunks for p in _pieces(chunk, most_tokens, page_size)]
    return plan if len(pieces) == len(plan.chunks) else replace(plan, chunks=tuple(pieces))


def _pieces(chunk: PlannedChunk, most_tokens: int, page_size: int) -> Iterator[PlannedChunk]:
    most = longest_chunk(max(most_tokens, 2 * page_size), chunk.sp_size, page_size)
    if chunk.tokens <= most:
        yield chunk
        return
    token_s = (chunk.end_s - chunk.start_s) / chunk.tokens
    for first in range(0, chunk.tokens, most):
        last = min(first + most, chunk.tokens)
        start_s = chunk.start_s + first * token_s
        end_s = chunk.end_s if last == chunk.tokens else chunk.start_s + last * token_s
        yield PlannedChunk(last - first, chunk.instances, start_s, end_s)
