"""Prompts that decode has: what home holds of them stays in SGLang's prefix cache.

A prefill server's chunk tasks own their slots and no row. When the last write to decode has ended,
home's request gets a row for a moment and is released as SGLang releases a request that has ended:
its tree takes what it lacks and frees what it has twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang_cdsp.engine.joining import fill_row, release
from sglang_cdsp.engine.slot_table import SlotTable

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

Keep = Callable[["Req", SlotTable], None]
"""``(req, table)``: cache what the table holds of a prompt from its first token on without a gap.
The table gives those slots away, with the lock on its prefix; what follows is still its own."""


def keep_in(pool: Any, tree: Any) -> Keep:
    """Keeps in SGLang's prefix tree; all ranks of an instance do so alike, in the same turn.

    Args:
        pool: SGLang's rows. While none is free nothing is kept.
        tree: its prefix cache, which shares prefixes.
    """

    def keep(req: Req, table: SlotTable) -> None:
        if table.front and pool.available_size():
            assert pool.alloc([req]) is not None
            prefix = table.prefix
            fill_row(req, pool, tree, table.hand_over_front(), prefix)
            release(req, tree)

    return keep
