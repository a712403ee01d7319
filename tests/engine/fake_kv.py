"""A strict KV slot allocator, and whole plans run on it without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_cdsp.engine.prefixes import CachedPrefix
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.parallel.chunk_layout import ChunkLayout
from sglang_cdsp.parallel.spans import Span


class StrictAllocator:
    """Hands out whole pages, never page 0, in no order; objects to every wrong ``free``."""

    device = "cpu"

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.free_pages = sorted(range(1, pages + 1), key=lambda page: page * 37 % 101)
        self.taken: set[int] = set()
        self.peak = 0

    def available_size(self) -> int:
        """Free slots."""
        return len(self.free_pages) * self.page_size

    def alloc(self, need: int) -> torch.Tensor | None:
        """Slots of whole pages, int64 ``[need]``; None when too few are free."""
        assert need % self.page_size == 0, "allocations are whole pages"
        count = need // self.page_size
        if count > len(self.free_pages):
            return None
        given, self.free_pages = self.free_pages[:count], self.free_pages[count:]
        self.taken.update(given)
        self.peak = max(self.peak, len(self.taken) * self.page_size)
        return (torch.tensor(given)[:, None] * self.page_size + self._offsets()).reshape(-1)

    def free(self, slots: torch.Tensor) -> None:
        """Takes pages back, each of them whole."""
        pages = (slots // self.page_size).unique().tolist()
        whole = (torch.tensor(pages)[:, None] * self.page_size + self._offsets()).reshape(-1)
        assert torch.equal(slots.sort().values, whole), "a page is freed in part"
        assert set(pages) <= self.taken, "a page is freed twice"
        self.taken -= set(pages)
        self.free_pages += pages

    def _offsets(self) -> torch.Tensor:
        return torch.arange(self.page_size)


class PlanRun:
    """Slots of one plan on all its instances, and which prompt position each slot holds."""

    def __init__(self, layouts: Sequence[ChunkLayout], page_size: int, pages: int = 512) -> None:
        self.layouts = layouts
        self.page_size = page_size
        members = layouts[-1].group
        self.allocators = {me: StrictAllocator(pages, page_size) for me in members}
        self.slot_table = {me: SlotTable(self.allocators[me], page_size) for me in members}
        self.memory: dict[int, dict[int, int]] = {me: {} for me in members}

    def start_from(self, me: int, prefix: CachedPrefix) -> None:
        """A member has the first tokens cached."""
        self.slot_table[me].use(prefix)
        self._store(me, Span(0, prefix.tokens), list(range(prefix.tokens)))

    def run(self, chunk: int) -> None:
        """As every member does: take slots, receive history, compute, give history away."""
        layout = self.layouts[chunk]
        for me in layout.group:
            incoming = [move.span for move in layout.moves if move.dst == me]
            self.slot_table[me].take([*incoming, *layout.shard(me)])
        for move in layout.moves:
            kept = self.stored(move.src, [move.span])
            self._store(move.dst, move.span, kept)
        for me in layout.group:
            for span in layout.shard(me):
                self._store(me, span, list(range(span.start, span.stop)))
        for me in layout.group:
            self.slot_table[me].drop(move.span for move in layout.moves if move.src == me)

    def stored(self, me: int, spans: Sequence[Span]) -> list[int]:
        """Prompt positions found in the slots of ``spans``."""
        slots = self.slot_table[me].slots(list(spans)).tolist()
        return [self.memory[me][slot] for slot in slots]

    def _store(self, me: int, span: Span, positions: list[int]) -> None:
        slots = self.slot_table[me].slots([span]).tolist()
        self.memory[me].update(zip(slots, positions, strict=True))
