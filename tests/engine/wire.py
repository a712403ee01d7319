"""What instances of one thread write to each other, counted in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from sglang_cdsp.parallel.links.threads import ThreadLinks
from sglang_cdsp.parallel.links.types import Header


@dataclass
class Wire:
    """Bytes that instances have written to each other.

    Attributes:
        sent: by serial, tag, source and destination.
    """

    sent: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)

    def of(self, serial: int, *tags: int, dst: int | None = None) -> int:
        """Bytes of a chunk with these tags, to one instance or to all."""
        return sum(
            count
            for (at, tag, _, to), count in self.sent.items()
            if at == serial and tag in tags and dst in (None, to)
        )


@contextmanager
def counted() -> Iterator[Wire]:
    """Count what is written on links meanwhile."""
    wire = Wire()
    write = ThreadLinks.write

    def counts(links: ThreadLinks, seat: int, slot: int, header: Header, block: Any) -> None:
        assert block.nbytes == header.size
        wire.sent[header.serial, header.tag, links.seat, seat] += block.nbytes
        write(links, seat, slot, header, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadLinks, "write", counts)
        yield wire
