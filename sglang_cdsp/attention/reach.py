"""Which earlier positions a query of a layer sees, where it does not see all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sglang_cdsp.parallel.spans import Span


@dataclass(frozen=True)
class Reach:
    """How far back the queries of a layer see.

    Attributes:
        rows: of a sliding window, the positions before a query that it sees; else the length of
            the stretches that a prompt is cut into.
        chunked: a query sees those before it in its own stretch (the chunked attention of Llama 4).
    """

    rows: int
    chunked: bool = False

    def first(self, position: int) -> int:
        """The first position that the query at ``position`` sees; later queries see no earlier."""
        if self.chunked:
            return position // self.rows * self.rows
        return max(0, position - self.rows)

    def runs(self, span: Span) -> Iterator[Span]:
        """Cut a span where what is seen begins anew: the queries of one run see each other."""
        start = span.start
        while start < span.stop:
            stop = self.first(start) + self.rows if self.chunked else span.stop
            yield Span(start, min(stop, span.stop))
            start = stop
