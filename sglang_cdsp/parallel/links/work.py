"""Exchanges under way: how far they are, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.traffic import Traffic
from sglang_cdsp.parallel.links.types import GiveWay


class Progress:
    """How far the messages of one exchange are."""

    def __init__(self, left: int) -> None:
        """``left``: messages that have not ended."""
        self.left = left
        self.error = ""

    @property
    def over(self) -> bool:
        """Whether all have ended, or the exchange failed."""
        return not self.left or bool(self.error)

    def fail(self, error: str) -> None:
        """Remember the first error, unless all is over."""
        if not self.over:
            self.error = error


class Work:
    """One exchange under way. Links hold its tensors until they have left or come."""

    def __init__(
        self,
        progress: Progress,
        poll: Callable[[], object],
        give_way: GiveWay,
        traffic: Traffic | None = None,
    ) -> None:
        """``traffic`` counts how long it is waited for."""
        self._progress = progress
        self._poll = poll
        self._give_way = give_way
        self._traffic = traffic or Traffic()

    def done(self) -> bool:
        """Whether every tensor may be used again, or the exchange failed; moves nothing on."""
        return self._progress.over

    def _arrived(self) -> bool:
        """As ``done``, but raises where the exchange failed.

        So tensor-parallel ranks hear of it before they go on: what a rank alone has not got, no
        rank computes with, and none waits for that one in a collective.
        """
        if self._progress.error:
            raise LinkError(self._progress.error)
        return self._progress.over

    def wait(self) -> None:
        """Give way until it is done.

        On CUDA the tensors are then ready for the stream that was current at ``exchange``.

        Raises:
            LinkError: a partner is gone, its lane or the hub was closed, or both sides disagree.
        """
        start_s = time.monotonic()
        try:
            if not self.done():
                self._poll()
            # Called although all may be there: tensor-parallel ranks switch at the same points.
            self._give_way(self._arrived)
            while not self.done():
                self._give_way(self._arrived)
        finally:
            # A chunk that is stopped here has waited, too.
            self._traffic.waited_s += time.monotonic() - start_s
        if self._progress.error:
            raise LinkError(self._progress.error)
