"""KV slots of one request on one instance, by prompt position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from sglang_cdsp.engine.prefixes import CachedPrefix
from sglang_cdsp.engine.stock import SlotAllocator
from sglang_cdsp.parallel.chunk_layout import padded_tokens
from sglang_cdsp.parallel.spans import Span


class OutOfSlots(RuntimeError):
    """The instance has fewer free KV slots than the plan reserved."""


class SlotTable:
    """Which slots hold which prompt positions; spans start on page borders."""

    def __init__(self, allocator: SlotAllocator, page_size: int) -> None:
        """``allocator`` is SGLang's token-to-KV-slot allocator of this instance."""
        self._allocator = allocator
        self._page = page_size
        self._slots: dict[Span, torch.Tensor] = {}
        self._prefix: CachedPrefix | None = None

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self._page

    @property
    def tokens(self) -> int:
        """Slots held, whole pages counted, those of a cached prefix among them."""
        cached = self._prefix.tokens if self._prefix is not None else 0
        return cached + sum(int(slots.numel()) for slots in self._slots.values())

    @property
    def prefix(self) -> CachedPrefix | None:
        """The cached prefix that it uses, None for none."""
        return self._prefix

    def use(self, prefix: CachedPrefix) -> None:
        """The first positions are those of a cached prefix, as long as anything is held here.

        Its slots are never freed: they are the cache's. The lock on it is this table's from now on.
        """
        assert not self._slots
        assert self._prefix is None
        self._prefix = prefix

    def needed(self, spans: Iterable[Span]) -> int:
        """Slots that ``take`` would allocate for spans, in whole pages."""
        return padded_tokens(self._beyond_prefix(spans), self._page)

    def _beyond_prefix(self, spans: Iterable[Span]) -> list[Span]:
        """The parts of spans that are not of the cached prefix."""
        first = self._prefix.tokens if self._prefix is not None else 0
        return [Span(max(span.start, first), span.stop) for span in spans if span.stop > first]

    def take(self, spans: Iterable[Span]) -> None:
        """Allocate slots for spans that are not held yet, beyond a cached prefix.

        Raises:
            OutOfSlots: when the pool is short; spans taken before stay held.
        """
        for span in self._beyond_prefix(spans):
            need = padded_tokens([span], self._page)
            slots = self._allocator.alloc(need) if need else None
            if need and slots is None:
                raise OutOfSlots(
                    f"{need} KV slots needed, {self._allocator.available_size()} free on this "
                    "instance; send a shorter prompt or raise --max-total-tokens"
                )
            if slots is not None:
                self._slots[span] = slots.to(torch.int64)

    def slots(self, spans: Sequence[Span]) -> torch.Tensor:
        """Slots of the positions in ``spans``, in their order, int64 ``[tokens]``.

        Raises:
            KeyError: for positions that are not held.
        """
        parts = [part for span in spans for _, part in self._parts(span)]
        if parts:
            return torch.cat(parts)
        return torch.empty(0, dtype=torch.int64, device=self._allocator.device)

    def pages(self, span: Span) -> torch.Tensor:
        """Page numbers of a span, int64 ``[pages]``."""
        parts = [part[:: self._page] // self._page for _, part in self._parts(span)]
        return torch.cat(parts)

    def drop(self, spans: Iterable[Span]) -> None:
        """Free the slots of ``spans``, which may be parts of taken spans; a cached prefix stays."""
        for span in self._beyond_prefix(list(spans)):
            for outer, _ in list(self._parts(span)):
                self._cut(outer, span)

    def slots_to_store(self, spans: Sequence[Span]) -> torch.Tensor:
        """As ``slots``, but for a cached prefix, which has its KV: slot 0, which is nobody's."""
        parts = [
            torch.zeros_like(part) if outer in self._cached() else part
            for span in spans
            for outer, part in self._parts(span)
        ]
        return torch.cat(parts) if parts else self.slots(())

    def hand_over(self, tokens: int) -> torch.Tensor:
        """Give the slots of positions 0 to ``tokens`` away, int64 ``[tokens]``: all that are held.

        With them goes the lock on the cached prefix, ``prefix`` until then, if there is one.

        Raises:
            KeyError: for positions that are not held; nothing was given away.
        """
        slots = self.slots([Span(0, tokens)])
        self._prefix = None
        self._slots.clear()
        return slots

    @property
    def front(self) -> int:
        """So many of the first positions are held without a gap, those of a cached prefix first."""
        stop = self._prefix.tokens if self._prefix is not None else 0
        for span in sorted(self._slots):
            if span.start > stop:
                break
            stop = max(stop, span.stop)
        return stop

    def hand_over_front(self) -> torch.Tensor:
        """Give the slots of the first positions away, int64 ``[front]``; what follows stays held.

        With them goes the lock on the cached prefix, as in ``hand_over``.
        """
        front = self.front
        slots = self.slots([Span(0, front)]) if front else self.slots(())
        self._prefix = None
        self._slots = {span: held for span, held in self._slots.items() if span.start >= front}
        return slots

    def give_back(self) -> None:
        """Free everything but a cached prefix."""
        for slots in self._slots.values():
            self._allocator.free(slots)
        self._slots.clear()

    def clear(self) -> None:
        """Free everything, and let go of a cached prefix."""
        self.give_back()
        if self._prefix is not None:
            prefix, self._prefix = self._prefix, None
            prefix.let_go()

    def _cached(self) -> tuple[Span, ...]:
        """The positions of the cached prefix."""
        return (Span(0, self._prefix.tokens),) if self._prefix is not None else ()

    def _parts(self, span: Span) -> Iterator[tuple[Span, torch.Tensor]]:
        """Held spans that cover ``span``, ascending, each with the slots of the covered part."""
        at = span.start
        prefix = self._prefix
        if prefix is not None and at < prefix.tokens:
            stop = min(prefix.tokens, span.stop)
            yield Span(0, prefix.tokens), prefix.slots[at:stop]
            at = stop
        for outer in sorted(self._slots, key=lambda held: held.start):
            if outer.start <= at < outer.stop and at < span.stop:
                stop = min(outer.stop, span.stop)
                yield outer, self._slots[outer][at - outer.start : stop - outer.start]
                at = stop
        if at < span.stop:
            raise KeyError(f"positions {at}..{span.stop} are not held on this instance")

    def _cut(self, outer: Span, span: Span) -> None:
        """Free the common part of a held span and ``span``; keep the rest."""
        slots = self._slots.pop(outer)
        begin = max(span.start, outer.start) - outer.start
        stop = min(span.stop, outer.stop)
        # The last span of a prompt may end inside a page: its padding goes with it.
        end = int(slots.numel()) if stop == outer.stop else stop - outer.start
        self._allocator.free(slots[begin:end])
        if begin:
            self._slots[Span(outer.start, outer.start + begin)] = slots[:begin]
        if stop < outer.stop:
            self._slots[Span(stop, outer.stop)] = slots[end:]
