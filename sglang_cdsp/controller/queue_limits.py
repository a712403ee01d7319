"""SGLang's options about order, length and time of its queue, honoured where a pool's queue is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_cdsp.controller.request import PoolRequest

QUEUE_FULL = "The request queue is full."
PASSED_OVER = "The request is aborted by a higher priority request."
WAITED_TOO_LONG = "Request waiting timeout reached."
NO_PRIORITY = (
    "Using priority is disabled for this server. Please send a new request without a priority."
)


@dataclass(frozen=True)
class QueueLimits:
    """What SGLang's flags say; texts and statuses of refusals are SGLang's.

    Attributes:
        by_priority: ``--enable-priority-scheduling``.
        low_first: ``--schedule-low-priority-values-first``.
        refuses_priority: ``--abort-on-priority-when-disabled``.
        most: ``--max-queued-requests``, requests without a plan; None for any number.
        timeout_s: ``SGLANG_REQ_WAITING_TIMEOUT``, from arrival to plan; None for any time.
    """

    by_priority: bool = False
    low_first: bool = False
    refuses_priority: bool = False
    most: int | None = None
    timeout_s: float | None = None

    def urgency(self, priority: int | None) -> int:
        """A request's place in the queue, larger is sooner; without a priority it comes last."""
        if not self.by_priority:
            return 0
        if priority is None:
            return -sys.maxsize - 1
        return -priority if self.low_first else priority

    def refusal(self, priority: int | None) -> str:
        """Why a request of this priority is refused at the door, "" if it is not."""
        refused = self.refuses_priority and not self.by_priority and priority is not None
        return NO_PRIORITY if refused else ""

    def in_excess(
        self, waiting: Iterable[PoolRequest], arriving: PoolRequest
    ) -> PoolRequest | None:
        """Who has to leave for the queue to keep its length: the least urgent, the newest first.

        A request that waits leaves only for one that is more urgent, and none that had a plan
        before. None if there is room.
        """
        queued = list(waiting)
        if self.most is None or len(queued) < self.most:
            return None
        fresh = [request for request in queued if not request.recalls]
        last = max(fresh, key=lambda r: (-r.urgency, r.arrival_s), default=arriving)
        return last if arriving.urgency > last.urgency else arriving

    def overdue(self, waiting: Iterable[PoolRequest], now_s: float) -> list[PoolRequest]:
        """Those that have waited too long at ``now_s`` (monotonic seconds) for their first plan."""
        if self.timeout_s is None:
            return []
        return [r for r in waiting if not r.recalls and now_s - r.arrival_s > self.timeout_s]
