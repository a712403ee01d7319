"""Requests that move from one instance to another between two steps, as one rank sees them.

Most of a request's KV goes ahead of it, while its last chunk runs or while it decodes on; the rest
and the request itself follow. All ranks of an instance do the same in the same turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.joining import Joining
from sglang_cdsp.engine.kv_transfer import Carrier
from sglang_cdsp.engine.moving_in import MovingIn
from sglang_cdsp.engine.moving_out import MovingOut
from sglang_cdsp.engine.prefixes import Match
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.stock import RankScheduler
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.protocol.messages import MovedOrder, MoveEndOrder, MoveInOrder, MoveOutOrder

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

    from sglang_cdsp.parallel.links.lanes import LinkHub


class Moving:
    """The moves of one rank."""

    def __init__(
        self,
        *,
        scheduler: RankScheduler,
        reporter: Reporter,
        joining: Joining,
        coroutines: Coroutines,
        hub: LinkHub,
        layers: tuple[int, ...],
        match: Match,
        ranks: Ranks = ALONE,
    ) -> None:
        """None moves yet.

        Args:
            layers: those of the model that have KV, in order.
            match: finds cached prefixes, and locks them.
            ranks: of this instance.
        """
        carrier = Carrier(scheduler, coroutines, hub, reporter.instance, layers, ranks)
        self._out = MovingOut(scheduler, reporter, joining, carrier)
        self._in = MovingIn(scheduler, reporter, joining, carrier, match)

    def follow(self, tracker: StockTracker, tasks: Mapping[int, ChunkTask]) -> None:
        """``tracker`` follows the requests that SGLang runs here, ``tasks`` are computed here."""
        self._out.follow(tracker, tasks)
        self._in.follow(tracker)

    def __bool__(self) -> bool:
        return bool(self._out) or bool(self._in)

    @property
    def reqs(self) -> list[Req]:
        """Requests that have left the batch, and are this instance's still."""
        return self._out.reqs

    @property
    def held_tokens(self) -> int:
        """KV slots of what is to go on here."""
        return self._in.held_tokens

    # -- orders ---------------------------------------------------------------------------

    def on_move_in(self, order: MoveInOrder) -> None:
        """A request is to go on here; it follows."""
        self._in.on_move_in(order)

    def on_move_out(self, order: MoveOutOrder) -> None:
        """A request is to leave."""
        self._out.on_move_out(order)

    def on_moved(self, order: MovedOrder) -> None:
        """The rest of a request is on its way to here."""
        self._in.on_moved(order)

    def on_move_end(self, order: MoveEndOrder) -> None:
        """A move is over for this instance."""
        if not self._out.on_move_end(order):
            self._in.on_move_end(order)

    # -- SGLang's requests ----------------------------------------------------------------

    def adopt(self, req: Req) -> bool:
        """Take SGLang's object of a request that is to go on here; False for any other."""
        return self._in.adopt(req)

    def intake_over(self, rid: str) -> None:
        """SGLang has seen a request: it was adopted, waits for its grammar, or is refused."""
        self._in.intake_over(rid)

    # -- the loop -------------------------------------------------------------------------

    def take_out(self, running: Any) -> None:
        """Take requests out of SGLang's running batch."""
        self._out.take_out(running)

    def step(self) -> None:
        """Go on with what has come to an end since, alike at all ranks."""
        self._out.step()
        self._in.step()
