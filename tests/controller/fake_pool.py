"""A whole pool without processes: a real life cycle, fake instances, and a decode side.

It is the life cycle's ``Effects`` and checks every order against what must always hold.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.controller.admission import Admission
from sglang_cdsp.controller.decode.rooms import RoomMessage, Rooms
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import RESERVE_TOKENS, InstanceLedger
from sglang_cdsp.controller.lifecycle import NO_LIMITS, Lifecycle
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.planning import make_planning
from sglang_cdsp.controller.prefixes.copy import Copy
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.controller.quiet import QuietGate
from sglang_cdsp.controller.request import AbortTarget, PoolRequest
from sglang_cdsp.parallel.chunk_layout import ChunkLayout, Send, plan_layout
from sglang_cdsp.planner.latency import builtin_model
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.prefixes.copies import CopyTimes
from sglang_cdsp.planner.rests import Placed
from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import AnyReport, LogprobPart, OutputState, Ready
from tests.controller.fake_instance import FakeInstance
from tests.controller.fake_tasks import Client, FakeStockRequest, FakeTask, Move

Chunks = list[tuple[int, list[int]]]
Demanded = Chunks | dict[str, Any]
# Longer than any test lets decode wait, but for those about waiting.
TIMEOUT_S = 1e5
# So large that prompts pass whatever runs.
PREEMPT_BUDGET = 10.0
# What decode keeps free for a request's output.
RESERVED = 64
Reports = deque[AnyReport]


class FakePool:
    """A pool of fake instances, which is also the effects of its life cycle.

    Attributes:
        answers: who answered each client, in order.
        statuses: with which HTTP status the controller answered.
        entered: members that are or were inside a chunk, by ``(seq, chunk)``.
        left: those that are inside no more.
        failed_inside: those of them that failed.
        safe: ``(room, rank)`` whose pages decode may have given to others.
        told_failed: rooms of which decode heard that they failed.
        told_statuses: the statuses that it heard with them, message by message.
        announced: how often all decode servers heard that a room failed.
        told_finished: how often decode heard that a room's KV has arrived.
        sends: what was sent of each task's KV, by the number that decode counts.
        replanned: how often the rest of a plan was changed.
        acks: how often decode heard that an aborted room is safe, by ``(room, rank)``.
        lost_requests: requests that ended because of a lost instance.
        lost_late: rooms of those of them of which decode had all by then.
    """

    make_instance: Callable[..., FakeInstance] = FakeInstance

    def make_prefixes(self, size: int, page_size: int) -> PoolPrefixes | None:
        """What is cached where; nothing is, in most pools."""
        return None

    def make_copies(self) -> CopyTimes | None:
        """What it takes to copy a cached prefix; none is copied, in most pools."""
        return None

    def __init__(
        self,
        *,
        size: int = 4,
        tp_size: int = 1,
        page_size: int = 1,
        capacity: int = 4096,
        policy: str = "single-chunk",
        min_chunk: int = 16,
        decode_tokens: int | None = 1_000_000,
        limits: QueueLimits = NO_LIMITS,
        max_shard_tokens: int | None = None,
        lanes: LaneTable | None = None,
        gate: QuietGate[Any] | None = None,
    ) -> None:
        self.tp_size = tp_size
        self.page_size = page_size
        self.capacity = capacity // page_size * page_size
        self.now_s = 1000.0
        self.instances = [type(self).make_instance(i, self) for i in range(size)]
        self.channels: defaultdict[tuple[int, int], Reports] = defaultdict(deque)
        self.answers: defaultdict[Client, list[str]] = defaultdict(list)
        self.statuses: dict[Client, int] = {}
        self.entered: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self.left: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self.failed_inside: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self.safe: set[tuple[int, int]] = set()
        self.told_failed: set[int] = set()
        self.told_statuses: list[int] = []
        self.announced: Counter[int] = Counter()
        self.told_finished: Counter[int] = Counter()
        self.acks: Counter[tuple[int, int]] = Counter()
        self.lost_requests: list[PoolRequest] = []
        self.lost_late: Counter[int] = Counter()
        self._stock_acks: set[tuple[int, int]] = set()
        self._confirming = False
        self.ends: list[PoolRequest] = []
        self.logprob_parts: list[LogprobPart] = []
        self.sends: defaultdict[int, dict[int, Send]] = defaultdict(dict)
        self.replanned = 0
        self._promised: dict[int, dict[int, int]] = {}
        self._heard: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
        self._chunks_started: Counter[int] = Counter()
        self._dropped: set[int] = set()
        self._last_seq = -1
        self._last_serial = 0
        self._lanes: dict[tuple[int, int], tuple[int, set[int]]] = {}
        self._clients = 0
        self._decode_uses = 0
        self.rooms = Rooms(tp_size)
        self.ledger = InstanceLedger(
            (self.capacity + RESERVE_TOKENS,) * size, page_size, size, preempt_budget=PREEMPT_BUDGET
        )
        sizes = tuple(s for s in (1, 2, 4) if s <= size)
        args = CdspArgs(policy=policy, min_chunk=min_chunk, preempt_budget=PREEMPT_BUDGET)
        self.planning = planning = make_planning(
            args,
            builtin_model(),
            sizes,
            page_size,
            prefixes=self.make_prefixes(size, page_size),
            copies=self.make_copies(),
        )
        self.policy = planning.policy.policy
        self.decode_servers = DecodeServers(page_size, RESERVED, TIMEOUT_S, decode_tokens)
        self.lifecycle = Lifecycle(
            ledger=self.ledger,
            planning=planning,
            rooms=self.rooms,
            effects=self,
            admission=Admission(
                policy=planning.policy,
                view=lambda: self.ledger.view(self.now_s),
                page_size=page_size,
                max_input_tokens=size * self.capacity + 1,
                allow_request_plans=True,
                decode=self.decode_servers,
                roles=lambda: self.ledger.roles,
            ),
            tp_size=tp_size,
            clock=lambda: self.now_s,
            decode=self.decode_servers,
            limits=limits,
            max_shard_tokens=max_shard_tokens,
            lanes=lanes,
            gate=gate,
        )

    # -- the world around the pool --------------------------------------------------------

    def request(
        self, tokens: int, *, rid: str | None = None, room: int | None = None
    ) -> PoolRequest:
        """A client's request; ``request`` is the client."""
        self._clients += 1
        name = rid or f"r{self._clients}"
        return PoolRequest(name, Client(self._clients), tokens, self.now_s, room=room)

    def submit(
        self,
        tokens: int,
        *,
        rid: str | None = None,
        room: int | None = None,
        plan: Demanded | None = None,
        urgency: int = 0,
    ) -> PoolRequest:
        """A client's request reaches the pool."""
        request = self.request(tokens, rid=rid, room=room)
        request.urgency = urgency
        self.lifecycle.on_request(request, plan)
        return request

    def decode_sends(self, room: int, rank: int) -> None:
        """A decode rank names its pages."""
        self.safe.discard((room, rank))
        self._decode_uses += 1
        frames = [b"pages", b"%d" % self._decode_uses]
        message = RoomMessage(rank, f"agent{rank}", 1, "decode", 7000 + rank, frames)
        self.lifecycle.on_pages(room, message)

    def decode_aborts(self, room: int, rank: int) -> None:
        """A decode rank gives a room up and waits for the acknowledgement."""
        target = AbortTarget(rank, "decode", 7000 + rank)
        self.lifecycle.on_room_abort(room, target, [b"ABORT", str(room).encode()])

    # -- seats ----------------------------------------------------------------------------

    def lose(self, seat: int, why: str = "killed by a test") -> None:
        """The process of a seat is given up; it goes on with what it has been told until it ends.

        What it said before has been heard.
        """
        for (me, _), reports in self.channels.items():
            while me == seat and reports:
                self._hear_next(reports)
        named = [r for r in self.lifecycle.requests if self._names(r, seat)]
        others = {r: (r.phase, r.error) for r in self.lifecycle.requests if r not in named}
        self.instances[seat].lost = True
        self.lifecycle.on_seat_lost(seat, why)
        for request, before in others.items():
            assert (request.phase, request.error) == before, "who is not there loses nothing"
        for request in self.lost_requests:
            heard = request.probe or self.answers[request.tokenized]
            assert heard, "whoever loses something is told at once"

    def _names(self, request: PoolRequest, seat: int) -> bool:
        """Whether a request may have anything on a seat."""
        plan = request.plan
        return plan is not None and (seat in plan.instances or seat == request.home)

    def confirm(self, seat: int) -> None:
        """The kernel says that a seat's process has ended."""
        self.instances[seat].end()
        self.instances[seat].lost = True
        for chunk, (_, group) in self._lanes.items():
            if seat in group:
                self.left[chunk].add(seat)
        for promise in self._promised.values():
            promise.pop(seat, None)
        for (me, _), reports in self.channels.items():
            if me == seat:
                reports.clear()
        self._confirming = True
        self.lifecycle.on_seat_ended(seat)
        self._confirming = False

    def fill(self, seat: int) -> None:
        """A new process takes a seat whose last one has ended."""
        self.instances[seat] = type(self).make_instance(seat, self)
        self.lifecycle.on_seat_up(seat)

    def moves(self) -> list[Move]:
        """Everything that could happen next inside the pool."""
        found = [
            Move(f"the controller hears {me}.{rank}", partial(self._hear_next, reports))
            for (me, rank), reports in self.channels.items()
            if reports
        ]
        for instance in self.instances:
            found += instance.moves()
        return found

    def turn(self) -> None:
        """The controller's loop comes round."""
        self.lifecycle.on_loop()

    def settle(self) -> None:
        """Let everything happen, without further faults, until nothing moves for a while."""
        quiet = 0
        for _ in range(100_000):
            self.turn()
            self.now_s += 1.0
            healthy = [move for move in self.moves() if not move.fault]
            quiet = 0 if healthy else quiet + 1
            if quiet > 3:
                return
            for move in healthy[:1]:
                move.do()
        raise AssertionError("the pool does not come to rest")

    def _hear_next(self, reports: Reports) -> None:
        self.hear(reports.popleft())

    def happen(self, name: str) -> None:
        """Let one thing happen by (the beginning of) its name, however unlikely."""
        (move,) = [move for move in self.moves() if move.name.startswith(name)]
        move.do()

    def until(self, reached: Callable[[], bool]) -> None:
        """Let things happen without faults until ``reached``."""
        for _ in range(10_000):
            if reached():
                return
            self.turn()
            next(move for move in self.moves() if not move.fault).do()
        raise AssertionError("not reached")

    # -- what instances and the life cycle tell -------------------------------------------

    def hear(self, report: AnyReport) -> None:
        """A report reaches the controller."""
        if isinstance(report, Ready):
            self._heard[(report.seq, report.revision, report.chunk)].add(report.instance)
        self.lifecycle.on_report(report)

    def answered(self, client: Client, who: str) -> None:
        """Somebody answers a client."""
        self.answers[client].append(who)

    def sent(self, seq: int, send: Send) -> None:
        """A shard leaves for decode."""
        assert send.send_id not in self.sends[seq], "a number is used twice"
        self.sends[seq][send.send_id] = send

    def decode_written(self, room: int, rank: int) -> None:
        """A write to a decode rank's pages starts."""
        assert (room, rank) not in self.safe, "decode's pages are written to after the answer"

    def decode_told_safe(self, room: int, rank: int) -> None:
        """A decode rank hears that its pages are its own again."""
        self.acks[(room, rank)] += 1
        self.safe.add((room, rank))

    def stock_told_safe(self, room: int, rank: int) -> None:
        """An instance's stock sender has told a decode rank that its pages are its own again."""
        self._stock_acks.add((room, rank))
        self.decode_told_safe(room, rank)

    def _no_write_left(self, room: int) -> bool:
        """Nobody holds a task of the room that could still write."""
        return not any(instance.could_write(room) for instance in self.instances)

    # -- Effects ---------------------------------------------------------------------------

    def bind(self, request: PoolRequest) -> None:
        """Orders to the instances of a plan."""
        plan = request.plan
        assert plan is not None
        assert request.seq > self._last_seq, "sequence numbers strictly increase"
        self._last_seq = request.seq
        chunks = [(chunk.tokens, chunk.instances) for chunk in plan.chunks]
        assert sum(tokens for tokens, _ in chunks) + plan.reused == request.tokens
        holders = (plan.home,) if plan.reused else ()
        needed = kv_demand(chunks, self.page_size, plan.reused, holders)
        slots = self._demand(request, needed, plan.home)
        self._promise(request, slots)
        for me in plan.instances:
            instance = self.instances[me]
            if request.one_instance:
                stock = FakeStockRequest(
                    request.seq,
                    request.rid,
                    request.tokenized,
                    request.room,
                    request.tokens,
                    plan.passes,
                )
                instance.order(partial(instance.on_stock, stock))
                continue
            self._introduce(request, me)
            if me == plan.home:
                self._send_request(request)

    def _promise(self, request: PoolRequest, slots: dict[int, int]) -> None:
        self._promised[request.seq] = slots
        totals: Counter[int] = Counter()
        for promise in self._promised.values():
            totals.update(promise)
        assert all(total <= self.capacity for total in totals.values()), "more promised than there"
        free = self.ledger.free_tokens()
        self._check_free(free, tuple(self.capacity - totals[i] for i in range(len(free))))

    def _check_free(self, free: tuple[int, ...], expected: tuple[int, ...]) -> None:
        """What the ledger says is free, and what is promised to nobody."""
        assert free == expected

    def _demand(self, request: PoolRequest, slots: dict[int, int], home: int) -> dict[int, int]:
        """KV slots that a request may take on each instance, of those that its chunks take."""
        return slots

    def _layouts(self, request: PoolRequest) -> tuple[ChunkLayout, ...]:
        assert request.plan is not None
        return plan_layout(request.plan.placement, self.page_size, request.plan.reused)

    def _introduce(self, request: PoolRequest, me: int) -> None:
        """An instance gets a plan that it knew nothing of."""
        assert request.plan is not None
        layouts = self._layouts(request)
        first = next(layout.index for layout in layouts if me in layout.group)
        task = FakeTask(
            request.seq,
            request.tokenized,
            request.room,
            layouts,
            first,
            request.revision,
            request.plan.passes,
            reused=request.plan.reused,
            copy=request.copy,
            gathers=request.keeps,
        )
        self.instances[me].order(partial(self.instances[me].on_plan, task))

    def _send_request(self, request: PoolRequest) -> None:
        """Home gets the request itself."""
        if request.probe:
            return
        assert request.plan is not None
        home = self.instances[request.plan.home]
        refuse = partial(home.refuse_request, request.seq)
        home.order(partial(home.on_request, request.seq), refuse)

    def replan(self, request: PoolRequest, before: Plan) -> None:
        """Orders to the instances of two plans."""
        plan, ran = request.plan, request.next_chunk
        assert plan is not None
        assert request.phase is Phase.BOUND, "a plan changes between two chunks"
        assert request.seq not in self._dropped
        assert self._chunks_started[request.seq] == ran
        assert plan.chunks[:ran] == before.chunks[:ran]
        assert plan.tokens + plan.reused == request.tokens
        assert plan.reused == before.reused
        placed = Placed.after(plan.before(ran), self.page_size)
        slots = placed.with_rest(plan.placement[ran:], self.page_size)
        assert set(placed.group) <= set(slots) == set(plan.instances)
        self._promise(request, self._demand(request, slots, plan.home))
        self.replanned += 1
        for me in {*before.instances, *plan.instances} - request.lost:
            at = self.instances[me]
            if me not in plan.instances:
                at.order(partial(at.on_forget, request.seq))
            elif me not in before.instances:
                self._introduce(request, me)
            else:
                layouts, passes = self._layouts(request), plan.passes
                said = (request.seq, request.revision, ran, layouts, passes, request.keeps)
                at.order(partial(at.on_rest, *said))
        if plan.home != before.home:
            assert not ran
            self._send_request(request)

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """All members of a chunk start it."""
        plan, chunk, seq = request.plan, request.next_chunk, request.seq
        assert plan is not None
        members = tuple(instances)
        assert seq not in self._dropped, "nothing is decided about a task that was dropped"
        assert members == plan.chunks[chunk].instances, "all members of the chunk are told"
        heard = self._heard[(seq, request.revision, chunk)]
        assert heard >= set(members), "all members are ready, by the plan in force"
        assert chunk == self._chunks_started[seq], "chunks start in order, once"
        self._chunks_started[seq] += 1
        assert request.serial > self._last_serial, "each use of a lane has a number of its own"
        self._last_serial = request.serial
        if len(members) > 1:
            self._check_lane(request, set(members))
        for me in members:
            self.instances[me].tasks[seq].started = True
            order = partial(self.instances[me].on_go, seq, chunk, request.revision)
            self.instances[me].order(order)

    def _check_lane(self, request: PoolRequest, members: set[int]) -> None:
        """Nobody who shares an instance with the chunk may still send on its lane."""
        for chunk, (lane, group) in self._lanes.items():
            inside = self.left[chunk] < group
            shared = lane == request.lane and group & members
            assert not (inside and shared), "a lane is used by two chunks at once"
        self._lanes[(request.seq, request.next_chunk)] = (request.lane, members)

    def stop(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """A task ends at instances of its plan."""
        assert request.plan is not None
        assert request.seq not in self._dropped, "a task is stopped once"
        self._dropped.add(request.seq)
        seq, resumes = request.seq, request.recalled
        for me in instances:
            assert me in request.reachable
            at = self.instances[me]
            at.order(partial(at.on_stop, seq, resumes=resumes))

    def logprobs(self, request: PoolRequest, part: LogprobPart) -> None:
        """Home gets another member's prompt log-probabilities."""
        assert part.seq == request.seq
        self.logprob_parts.append(part)

    def release(self, request: PoolRequest) -> None:
        """Free the slots everywhere."""
        assert request.plan is not None
        seq, error = request.seq, request.error
        silent = request.answered or request.recalled
        for me in request.reachable:
            at = self.instances[me]
            at.order(partial(at.on_release, seq, error, silent))

    def cancel_stock(self, request: PoolRequest) -> None:
        """Abort a one-instance request, or one that its home decodes, where it is."""
        assert request.one_instance or request.decodes
        for me in request.reachable:
            self.instances[me].order(partial(self.instances[me].on_cancel, request.seq))

    def move_in(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int
    ) -> None:
        """An instance is to get ready for a running request."""
        raise AssertionError("decode servers run requests, and keep them")

    def move_out(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int, held: int
    ) -> None:
        """A running request is to leave its instance."""
        raise AssertionError("decode servers run requests, and keep them")

    def moved(
        self, request: PoolRequest, target: int, rows: int, output: OutputState, ahead: int
    ) -> None:
        """A running request has left its instance."""
        raise AssertionError("decode servers run requests, and keep them")

    def move_end(self, seq: int, instance: int, *, moved: bool) -> None:
        """A move is over for an instance."""
        raise AssertionError("decode servers run requests, and keep them")

    def move_over(self, request: PoolRequest) -> None:
        """A running request has another home."""

    def copy_in(self, copy: Copy) -> None:
        """An instance is to get ready for a prefix."""
        raise AssertionError("nothing is copied here")

    def copy_out(self, copy: Copy) -> None:
        """An instance is to send a prefix."""
        raise AssertionError("nothing is copied here")

    def copy_end(self, number: int, instance: int) -> None:
        """A copy is over for an instance."""
        raise AssertionError("nothing is copied here")

    def copy_over(self, copy: Copy) -> None:
        """Nobody has anything of a copy any more."""
        raise AssertionError("nothing is copied here")

    def roles_changed(self, roles: Roles, why: str) -> None:
        """The seats have other roles."""

    def answer(self, request: PoolRequest, status: HTTPStatus, message: str) -> None:
        """The controller answers a client."""
        assert message
        assert status >= HTTPStatus.BAD_REQUEST
        assert "controller" not in self.answers[request.tokenized]
        self.answered(request.tokenized, "controller")
        self.statuses[request.tokenized] = int(status)

    def forward_abort(self, request: PoolRequest, tp_rank: int, frames: list[bytes]) -> None:
        """Decode's abort goes to a one-instance request's instance."""
        assert request.one_instance
        assert request.plan is not None
        assert request.room is not None
        self._stock_acks.discard((request.room, tp_rank))
        (me,) = request.reachable
        at = self.instances[me]
        at.order(partial(at.on_room_abort, request.room, tp_rank))

    def fail_room(self, room: int, reason: str) -> None:
        """Decode hears that a room failed, and frees its pages."""
        assert reason
        assert self._no_write_left(room), "decode frees pages that are still written to"
        for message in self.rooms.messages(room):
            self.told_statuses.append(int(self.rooms.rejection_status(room)))
            self.told_failed.add(room)
            self.safe.add((room, message.tp_rank))

    def announce_failure(self, room: int, reason: str) -> None:
        """All decode servers hear that a room failed."""
        assert reason
        assert not self.rooms.complete(room), "who has the room is known"
        self.announced[room] += 1

    def finish_room(self, room: int) -> None:
        """Decode hears that a room's KV has arrived, and uses it."""
        assert self._no_write_left(room), "decode uses KV that is still being written"
        self.told_finished[room] += 1

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Decode hears that an aborted room's pages are safe."""
        assert self._no_write_left(room), "an abort is acknowledged while writes may be in flight"
        if self._confirming and (room, target.tp_rank) in self._stock_acks:
            return  # decode hears it for the second time, from who cannot know of the first
        self.decode_told_safe(room, target.tp_rank)

    def lost(self, request: PoolRequest) -> None:
        """A request ends because of an instance that was given up."""
        assert request.lost
        assert request.error
        self.lost_requests.append(request)
        if request.phase is Phase.RELEASING and request.room is not None:
            self.lost_late[request.room] += 1

    def recalled(self, request: PoolRequest) -> None:
        """A request is back among those that wait."""
        assert request.phase is Phase.WAITING
        assert not request.error
        assert not self._chunks_started[request.seq], "a plan is recalled that has begun"
        self._promised.pop(request.seq, None)

    def ended(self, request: PoolRequest) -> None:
        """A request is over."""
        assert request.phase is Phase.ENDED
        assert all(request is not other for other in self.ends), "a request ends once"
        if request.outcome == "finished" and not (request.one_instance or request.decodes):
            sends = self.sends[request.seq]
            assert sorted(sends) == list(range(len(sends))), "decode waits for a number"
            assert [n for n in sends if sends[n].last] == [len(sends) - 1]
            spans = [span for send in sends.values() for span in send.spans]
            assert sum(span.tokens for span in spans) == request.tokens, "a token goes twice"
        self._promised.pop(request.seq, None)
        self.ends.append(request)
