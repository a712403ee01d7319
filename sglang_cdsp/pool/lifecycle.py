"""A request's way through the pool, as the controller drives it.

Pure bookkeeping: what goes out is handed to an ``Outbox``, so the whole life cycle can be run
without processes.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.pool.admission import Admission
from sglang_cdsp.pool.books import Books
from sglang_cdsp.pool.decode_servers import DecodeServers
from sglang_cdsp.pool.entrance import BEFORE_A_PLAN, Entrance
from sglang_cdsp.pool.entry import AbortTarget, ChunkTimes, Entry, Phase
from sglang_cdsp.pool.messages import LogprobPart
from sglang_cdsp.pool.outbox_protocol import Outbox
from sglang_cdsp.pool.planning import Planning
from sglang_cdsp.pool.room_keeper import RoomKeeper
from sglang_cdsp.pool.rooms import Rooms
from sglang_cdsp.pool.seats import Seats
from sglang_cdsp.pool.waiting import Waiting


class Lifecycle:
    """All requests of the pool; see the module's text. Times are monotonic seconds.

    Attributes:
        entrance: what happens to requests before they have a plan.
    """

    def __init__(
        self,
        *,
        seats: Seats,
        planning: Planning,
        rooms: Rooms,
        outbox: Outbox,
        admission: Admission,
        tp_size: int,
        clock: Callable[[], float],
        decode: DecodeServers,
    ) -> None:
        """``clock`` gives the time; ``decode`` knows how long it may take to name its pages."""
        self._clock = clock
        self._seats = seats
        self._planning = planning
        self._rooms = keeper = RoomKeeper(rooms, outbox, clock)
        self._out = outbox
        self._tp_size = tp_size
        self._books = Books(
            seats=seats, policy=planning.policy, rooms=keeper, outbox=outbox, clock=clock
        )
        self.entrance = Entrance(
            books=self._books,
            admission=admission,
            rooms=keeper,
            waiting=Waiting(planning, seats, clock),
            outbox=outbox,
            decode=decode,
            abort=self.abort,
        )
        self._next_seq = 0
        self._epoch = 0
        self._links_broken = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Requests that are not over."""
        return tuple(self._books.by_rid.values())

    # -- planning -------------------------------------------------------------------------

    def probe(self, entry: Entry, plan: Plan) -> None:
        """Run a measurement of the controller's own."""
        self._books.by_rid[entry.rid] = entry
        self._bind(entry, plan)

    def plan(self) -> None:
        """Bind whatever starts now."""
        self._rooms.tell()
        self.entrance.end_overdue()
        for entry, plan in self.entrance.starts():
            self._bind(entry, plan)

    def _bind(self, entry: Entry, plan: Plan) -> None:
        chunks = [(chunk.tokens, chunk.instances) for chunk in plan.chunks]
        now_s = self._clock()
        entry.plan, entry.policy, entry.bound_s = plan, plan.policy, now_s
        entry.times = [ChunkTimes() for _ in chunks]
        entry.seq, self._next_seq = self._next_seq, self._next_seq + 1
        entry.phase = Phase.BOUND
        self._books.by_seq[entry.seq] = entry
        self._seats.bind(entry.seq, plan, now_s, kv_demand(chunks, self._seats.page_size))
        self._out.bind(entry)

    # -- progress -------------------------------------------------------------------------

    def ready(self, seq: int, chunk: int, instance: int) -> None:
        """An instance can start a chunk."""
        entry = self._books.by_seq.get(seq)
        if entry is not None and entry.phase is Phase.BOUND:
            entry.ready.setdefault(chunk, set()).add(instance)
            self._advance(entry)

    def chunk_done(self, seq: int, chunk: int, instance: int, start_s: float, end_s: float) -> None:
        """An instance ran its shard."""
        entry = self._books.by_seq.get(seq)
        if entry is None or entry.plan is None:
            return
        times = entry.times[chunk]
        # Members wait for each other inside a chunk: the last to come starts it.
        times.start_s = max(start_s, times.start_s or start_s)
        times.end_s = max(end_s, times.end_s or end_s)
        self._member_done(entry, chunk, instance)
        self._relink_if_quiet()

    def _member_done(self, entry: Entry, chunk: int, instance: int) -> None:
        assert entry.plan is not None
        times = entry.times[chunk]
        times.done.add(instance)
        # Who joins later may fail meanwhile: the members that run the chunk are what counts.
        if not times.done >= set(entry.plan.chunks[chunk].instances):
            return
        entry.running = False
        entry.next_chunk = chunk + 1
        if times.end_s is not None:
            self._seats.ended(entry.seq, chunk, times.end_s)
            self._learn(entry, chunk)
        if entry.next_chunk == len(entry.plan.chunks) and not entry.error:
            entry.phase = Phase.DRAINING
            self._seats.computed(entry.seq)
        else:
            self._advance(entry)

    def _learn(self, entry: Entry, chunk: int) -> None:
        """Feed a chunk's real time to the latency model."""
        assert entry.plan is not None
        times = entry.times[chunk]
        if times.start_s is None or times.end_s is None or entry.probe or entry.error:
            return
        history = sum(before.tokens for before in entry.plan.chunks[:chunk])
        planned = entry.plan.chunks[chunk]
        seconds = times.end_s - times.start_s
        self._planning.observe(planned.sp_size, history, planned.tokens, seconds)

    def _advance(self, entry: Entry) -> None:
        """Decide go or drop for the next chunk, once and for all members."""
        assert entry.plan is not None
        if entry.running or entry.phase is not Phase.BOUND or entry.one_instance:
            return
        if entry.error:
            self._drop(entry)
            return
        if self._links_broken:
            return
        group = entry.plan.chunks[entry.next_chunk].instances
        if entry.ready.get(entry.next_chunk, set()) >= set(group):
            entry.running = True
            self._out.go(entry, group, go=True)

    def _drop(self, entry: Entry) -> None:
        assert entry.plan is not None
        entry.phase = Phase.DRAINING
        self._seats.ended(entry.seq, len(entry.plan.chunks) - 1, self._clock())
        self._seats.computed(entry.seq)
        self._out.go(entry, entry.plan.instances, go=False)

    def first_token(self, seq: int, at_s: float) -> None:
        """The first token was sampled."""
        entry = self._books.by_seq.get(seq)
        if entry is not None:
            entry.first_token_s = at_s
            if entry.one_instance:
                self._seats.ended(seq, 0, at_s)
                self._seats.computed(seq)

    def logprobs(self, part: LogprobPart) -> None:
        """A member computed prompt log-probabilities; home collects them."""
        entry = self._books.by_seq.get(part.seq)
        if entry is not None:
            self._out.logprobs(entry, part)

    def failed(
        self,
        seq: int,
        instance: int,
        error: str,
        *,
        bad_request: bool = False,
        links_broken: bool = False,
    ) -> None:
        """The task cannot go on at an instance."""
        self._links_broken = self._links_broken or links_broken
        entry = self._books.by_seq.get(seq)
        if entry is None:
            return
        entry.error = entry.error or error
        entry.answered = entry.answered or bad_request
        if entry.running:
            self._member_done(entry, entry.next_chunk, instance)
        else:
            self._advance(entry)
        self._relink_if_quiet()

    def write_lost(self, seq: int, error: str) -> None:
        """A KV write to decode failed: the task is dropped at its next boundary."""
        entry = self._books.by_seq.get(seq)
        if entry is not None:
            entry.error = entry.error or error
            self._advance(entry)

    def _relink_if_quiet(self) -> None:
        """Make new links between two chunks; orders behind this one use them."""
        if not self._links_broken or any(e.running for e in self._books.by_seq.values()):
            return
        self._links_broken = False
        self._epoch += 1
        self._out.relink(self._epoch)
        for entry in tuple(self._books.by_seq.values()):
            self._advance(entry)

    def drained(self, seq: int, instance: int, tp_rank: int, error: str) -> None:
        """A rank writes nothing more to decode for the task."""
        entry = self._books.by_seq.get(seq)
        if entry is None or entry.plan is None:
            return
        entry.error = entry.error or error
        entry.drained.add((instance, tp_rank))
        if len(entry.drained) == len(entry.plan.instances) * self._tp_size:
            entry.phase = Phase.RELEASING
            self._rooms.settle(entry)
            # Decode may be done already and use the number again while slots are being freed.
            self._rooms.leave(entry)
            self._out.release(entry)

    def released(self, seq: int, instance: int) -> None:
        """An instance freed the task's slots."""
        entry = self._books.by_seq.get(seq)
        if entry is None or entry.plan is None:
            return
        entry.released.add(instance)
        if entry.released >= set(entry.plan.instances):
            self._books.end(entry)

    def turn_ended(self, seq: int, start_s: float | None, end_s: float | None, error: str) -> None:
        """A one-instance request left its instance, which has answered its client."""
        entry = self._books.by_seq.get(seq)
        if entry is None:
            return
        entry.times[0].start_s, entry.times[0].end_s = start_s, end_s
        entry.error = entry.error or error
        entry.answered = True
        if entry.error:
            self._rooms.settle(entry)
        self._books.end(entry)

    # -- ends -----------------------------------------------------------------------------

    def abort(self, entry: Entry, reason: str) -> None:
        """Nobody wants the request any more; its client is answered now, slots follow."""
        if entry.phase in (Phase.RELEASING, Phase.ENDED):
            return
        entry.aborted = True
        entry.error = entry.error or reason
        if not entry.answered:
            entry.answered = True
            self._out.answer(entry, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        if entry.phase in BEFORE_A_PLAN:
            self.entrance.leave(entry)
        elif entry.one_instance:
            self._out.cancel_turn(entry)
        elif entry.phase is Phase.BOUND and not entry.running:
            self._drop(entry)

    def abort_room(self, room: int, target: AbortTarget | None, frames: list[bytes]) -> None:
        """Decode gave a room up (``frames`` say so); it is told once its pages are safe."""
        entry = self._rooms.user(room)
        if entry is None:
            self._rooms.given_up(room, target)
            return
        if entry.one_instance and target is not None:
            # That instance's stock sender knows when its own writes have drained.
            self._out.forward_abort(entry, target.tp_rank, frames)
        elif target is not None:
            entry.abort_targets.append(target)
        self.abort(entry, "decode gave the request up")

    def matching(self, rid: str, *, everything: bool) -> tuple[Entry, ...]:
        """Requests that SGLang's abort names: ids that begin with ``rid``, or all."""
        return tuple(
            e
            for e in self._books.by_rid.values()
            if not e.probe and (everything or e.rid.startswith(rid))
        )
