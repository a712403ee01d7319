"""The requests that are not over, and what becomes free when one is."""

from __future__ import annotations

from collections.abc import Callable

from sglang_cdsp.planner.policies import Policy
from sglang_cdsp.pool.entry import Entry, Phase
from sglang_cdsp.pool.outbox_protocol import Outbox
from sglang_cdsp.pool.room_keeper import RoomKeeper
from sglang_cdsp.pool.seats import Seats


class Books:
    """See the module's text.

    Attributes:
        by_rid: all of them, by SGLang's request id.
        by_seq: those that have a plan, by their place in the pool's order of tasks.
    """

    def __init__(
        self,
        *,
        seats: Seats,
        policy: Policy,
        rooms: RoomKeeper,
        outbox: Outbox,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self._seats = seats
        self._policy = policy
        self._rooms = rooms
        self._out = outbox
        self._clock = clock
        self.by_rid: dict[str, Entry] = {}
        self.by_seq: dict[int, Entry] = {}

    def end(self, entry: Entry) -> None:
        """A request is over, and nothing of it is left anywhere."""
        entry.phase = Phase.ENDED
        if self.by_rid.get(entry.rid) is entry:
            # Else a new request has the id, and the policy would take this end for its.
            del self.by_rid[entry.rid]
            self._policy.finish(entry.rid, self._clock())
        self.by_seq.pop(entry.seq, None)
        self._rooms.leave(entry)
        self._seats.release(entry.seq)
        self._out.ended(entry)
