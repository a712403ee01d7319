"""Cached prefixes that are copied from one instance's prefix tree to another's, over the links.

The source matches the prefix in its tree and locks it while it is sent, layer by layer, as KV of a
running request is (``kv_transfer.py``). The target takes slots for what its own tree lacks, and
when all has come the prefix enters its tree the way the KV of a request does that has ended; from
then on it is cached like any other. All ranks of an instance do the same in the same turn.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.engine.coroutines import USUAL, Coroutines
from sglang_cdsp.engine.joining import give_row, make_room, release
from sglang_cdsp.engine.kv_transfer import Carrier, Transfer
from sglang_cdsp.engine.prefixes import CachedPrefix, Match
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.stock import RankScheduler
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.rebalancer import rows_of_layer
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import (
    CopyEnded,
    CopyEndOrder,
    CopyInOrder,
    CopyOutOrder,
    CopyReady,
)

if TYPE_CHECKING:
    from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.parallel.links.lanes import LinkHub


@dataclass(eq=False)
class _Leaving:
    """A prefix that is sent; ``prefix`` is locked until it has left."""

    prefix: CachedPrefix
    transfer: Transfer


@dataclass(eq=False)
class _Coming:
    """A prefix that comes.

    Attributes:
        req: a request that nobody made and nobody answers, by which it enters the tree. Its row
            lists where KV comes to, after what the tree has had of it, which is locked.
        kept: it is in the tree.
    """

    req: Req
    transfer: Transfer
    kept: bool = False

    @property
    def tokens(self) -> int:
        """Of the prefix."""
        return len(self.req.origin_input_ids)


class Copying:
    """The copies of cached prefixes of one rank."""

    def __init__(
        self,
        *,
        scheduler: RankScheduler,
        reporter: Reporter,
        coroutines: Coroutines,
        hub: LinkHub,
        layers: tuple[int, ...],
        match: Match,
        ranks: Ranks = ALONE,
    ) -> None:
        """Nothing is copied yet.

        Args:
            layers: those of the model that have KV, in order.
            match: finds cached prefixes, and locks them.
            ranks: of this instance.
        """
        self._scheduler = scheduler
        self._reporter = reporter
        self._match = match
        self._layers = layers
        self._ranks = ranks
        self._carrier = Carrier(
            scheduler,
            coroutines,
            hub,
            reporter.instance,
            layers,
            ranks,
            what="prefix",
            urgency=USUAL,  # its number is below every task's: it comes before chunks, which go on
        )
        self._leaving: dict[int, _Leaving] = {}
        self._coming: dict[int, _Coming] = {}

    def __bool__(self) -> bool:
        return bool(self._leaving or self._coming)

    @property
    def token_bytes(self) -> int:
        """KV of a token on this rank's links, all layers; of rows that all ranks hold its share."""
        pool = self._scheduler.tp_worker.model_runner.token_to_kv_pool
        carried = 0
        for layer in self._layers:
            buffers = rows_of_layer(pool, layer)
            whole = sum(int(buffer[0].nbytes) for buffer in buffers)
            carried += whole if len(buffers) > 1 else whole // self._ranks.size
        return carried

    @property
    def held_tokens(self) -> int:
        """KV slots of what comes."""
        return sum(copy.tokens for copy in self._coming.values() if not copy.kept)

    def comes(self, copy: int) -> bool:
        """Whether a copy to this instance is under way."""
        return copy in self._coming

    # -- orders ---------------------------------------------------------------------------

    def on_copy_in(self, order: CopyInOrder) -> None:
        """A prefix is to come: what the tree lacks of it gets slots."""
        req = _stand_in(order)
        count = len(req.origin_input_ids)
        allocator = self._scheduler.token_to_kv_pool_allocator
        slots, whole = SlotTable(allocator, int(allocator.page_size)), Span(0, count)
        prefix = self._match(req, _tokens(order))
        if prefix is not None:
            slots.use(prefix)
        held = slots.tokens
        need = slots.needed([whole])
        lacks = "" if make_room(self._scheduler, need) else f"{need} KV slots"
        if not self._scheduler.req_to_token_pool.available_size():
            lacks = "places for requests"
        if lacks:
            slots.clear()
            self._ended(order.seq, error=f"{lacks} are not free here")
            return
        slots.take([whole])
        rows = slots.hand_over(count)
        give_row(self._scheduler, req, rows, prefix)
        copy = self._coming[order.seq] = _Coming(req, Transfer())
        if not need:
            copy.transfer.arrived = True
            return
        self._carrier.receive(copy.transfer, order, rows[held:])
        self._reporter.send_from_leader(CopyReady, seq=order.seq, held=held)

    def on_copy_out(self, order: CopyOutOrder) -> None:
        """A cached prefix is to leave, if all of it is here still."""
        req = _stand_in(order)
        count = len(req.origin_input_ids)
        prefix = self._match(req, _tokens(order))
        found = 0 if prefix is None else prefix.tokens
        if prefix is None or found < count:
            if prefix is not None:
                prefix.let_go()
            error = f"{found} of {count} tokens are cached here"
            self._ended(order.seq, error=error, found=found)
            return
        copy = self._leaving[order.seq] = _Leaving(prefix, Transfer())
        self._carrier.send(copy.transfer, order, prefix.slots[order.first : count])

    def on_copy_end(self, order: CopyEndOrder) -> None:
        """A copy does not come about."""
        for copies in (self._leaving, self._coming):
            copy = copies.get(order.seq)
            if copy is not None:
                self._carrier.stop(copy.transfer)

    # -- the loop -------------------------------------------------------------------------

    def step(self) -> None:
        """Go on with what has come to an end since, alike at all ranks."""
        for number, leaving in list(self._leaving.items()):
            if self._carrier.over(leaving.transfer):
                del self._leaving[number]
                leaving.prefix.let_go()
                found = leaving.prefix.tokens
                self._ended(number, error=leaving.transfer.error, found=found)
        for number, coming in list(self._coming.items()):
            if self._carrier.over(coming.transfer):
                self._go_on_coming(number, coming)

    def _go_on_coming(self, number: int, copy: _Coming) -> None:
        error = copy.transfer.error
        if not copy.kept:
            # As if its request had ended here; what has not come whole is given back.
            copy.req.finished_reason = FINISH_LENGTH(length=0)
            release(copy.req, self._scheduler.tree_cache, keep=not error)
            copy.kept = not error
            if copy.kept:
                return  # who hears of the end is to know already what the tree has stored
        del self._coming[number]
        self._ended(number, error=error)

    def _ended(self, seq: int, *, error: str = "", found: int | None = None) -> None:
        self._reporter.send_from_leader(CopyEnded, seq=seq, error=error, found=found)


def _tokens(order: CopyInOrder | CopyOutOrder) -> torch.Tensor:
    """The prefix's token ids, int64."""
    return torch.frombuffer(bytearray(order.tokens), dtype=torch.int32).to(torch.int64)


def _stand_in(order: CopyInOrder | CopyOutOrder) -> Req:
    """A request whose prompt is the prefix."""
    params = SamplingParams(max_new_tokens=1)
    ids = array("q", _tokens(order).tolist())
    return Req(f"prefix {order.seq}", None, ids, params, cache_salt=order.salt)
