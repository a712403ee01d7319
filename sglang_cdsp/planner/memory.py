"""How many KV slots a plan needs on each instance: the rule that makes a group a candidate.

The rule, on the safe side of what the engine does:

1. A chunk of t tokens on s instances is cut at page borders into 2s zigzag pieces and each member
   holds two, so a member's shard is at most `2 * ceil(pages / 2s)` pages (all pages if s = 1).
2. Before a chunk whose group grew, the history is spread evenly: `ceil(pages / s)` pages a member.
3. Slots that a member gives away in that move are free again only after that chunk. So an old
   member needs, during the chunk, all it held before plus its new shard; a joining member needs
   its part of the history plus its shard.
4. A plan fits if every member's largest need, less what it already holds of the prompt's history,
   is at most its free slots. What a plan may free early is not lent to other plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def pages(tokens: int, page_size: int) -> int:
    """KV pages that hold so many tokens."""
    return -(-tokens // page_size)


def history_share(tokens: int, size: int, page_size: int) -> int:
    """Slots (tokens) one of `size` members needs for its part of a spread history."""
    return -(-pages(tokens, page_size) // size) * page_size


def shard_share(tokens: int, size: int, page_size: int) -> int:
    """Slots (tokens) one of `size` members needs at most for its shard of a chunk."""
    if size == 1:
        return pages(tokens, page_size) * page_size
    return 2 * -(-pages(tokens, page_size) // (2 * size)) * page_size


def longest_chunk(slots: int, size: int, page_size: int) -> int:
    """The longest chunk whose shards take at most `slots` on each of `size` members."""
    members_pages = max(slots, 0) // page_size
    if size == 1:
        return members_pages * page_size
    return members_pages // 2 * 2 * size * page_size


def kv_demand(
    chunks: Iterable[tuple[int, Sequence[int]]],
    page_size: int,
    history_tokens: int = 0,
    history_instances: Sequence[int] = (),
) -> dict[int, int]:
    """Free KV slots each instance needs for the chunks [(tokens, group), ...] by the rule above.

    The server promises this much at binding and returns the promise as real slots are taken.
    """
    existing = (
        history_share(history_tokens, len(history_instances), page_size) if history_tokens else 0
    )
    held = existing
    group: Sequence[int] = history_instances
    placed = history_tokens
    peak = dict.fromkeys(history_instances, 0)
    for tokens, members in chunks:
        size = len(members)
        shard = shard_share(tokens, size, page_size)
        for i in group:
            peak[i] = max(peak[i], held + shard)
        if size > len(group):
            held = history_share(placed, size, page_size) if placed else 0
            for i in members[len(group) :]:
                peak[i] = held + shard
        held += shard
        placed += tokens
        group = members
    return {i: need - (existing if i in history_instances else 0) for i, need in peak.items()}


def fits(
    chunks: Iterable[tuple[int, Sequence[int]]],
    free_tokens: Sequence[int],
    page_size: int,
    history_tokens: int = 0,
    history_instances: Sequence[int] = (),
) -> bool:
    """Whether every instance has the free KV slots that the chunks need of it."""
    demand = kv_demand(chunks, page_size, history_tokens, history_instances)
    return all(need <= free_tokens[i] for i, need in demand.items())


def held_after(
    chunks: Iterable[tuple[int, Sequence[int]]],
    page_size: int,
    history_tokens: int = 0,
    history_size: int = 0,
) -> int:
    """Slots (tokens) of the prompt that each member of the last group holds after the chunks."""
    held = history_share(history_tokens, history_size, page_size) if history_tokens else 0
    size, placed = history_size, history_tokens
    for tokens, members in chunks:
        if len(members) > size:
            size = len(members)
            held = history_share(placed, size, page_size) if placed else 0
        held += shard_share(tokens, size, page_size)
        placed += tokens
    return held
