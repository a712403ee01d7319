"""Any order of arrivals, pages, progress, changes of plans, failures and aborts.

For tests of the life cycle. The fakes check every order that goes out; here are the events and what
must be true at the end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.presence import Stand
from sglang_cdsp.controller.request import PoolRequest
from tests.controller.fake_pool import Demanded, FakePool
from tests.planner.drawn_plans import DrawnRests, drawn_rests

POLICIES = (
    "cdsp-late",
    "cdsp",
    "cdsp-paper",
    "single-chunk",
    "fixed-sp:2",
    "data-parallel",
    "threshold:300",
    "loongserve",
)


PAGES = st.sampled_from(["no decode", "before", "after", "prefill is late", "decode is late"])


@dataclass
class DecodeSide:
    """What decode has done about one room."""

    sent: set[int] = field(default_factory=set)
    gone: bool = False
    aborted: set[int] = field(default_factory=set)


class AnyOrder(RuleBasedStateMachine):
    """Clients, decode and the pool's insides take turns as hypothesis likes."""

    make_pool: type[FakePool] = FakePool
    own_answers: tuple[str, ...] = ("stock", "home refused")

    @initialize(
        size=st.integers(2, 4),
        tp_size=st.integers(1, 2),
        page_size=st.sampled_from([1, 16]),
        capacity=st.sampled_from([256, 1024, 4096]),
        policy=st.sampled_from(POLICIES),
        replans=st.none() | st.integers(0, 1 << 32),
        max_shard_tokens=st.sampled_from([None, 64]),
    )
    def start(
        self,
        size: int,
        tp_size: int,
        page_size: int,
        capacity: int,
        policy: str,
        replans: int | None,
        max_shard_tokens: int | None,
    ) -> None:
        self.pool = self.make_pool(
            size=size,
            tp_size=tp_size,
            page_size=page_size,
            capacity=capacity,
            policy=policy,
            max_shard_tokens=max_shard_tokens,
        )
        if replans is not None:
            drawn = DrawnRests(self.pool.planning.model, page_size, replans)
            self.pool.policy.replans = True
            self.pool.policy.replan = drawn  # type: ignore[method-assign]
        self.requests: list[PoolRequest] = []
        self.on_the_way: list[tuple[PoolRequest, Demanded | None]] = []
        self.rooms: dict[int, DecodeSide] = {}
        self.shared_rooms: set[int] = set()
        self.aborts_again: Counter[tuple[int, int]] = Counter()

    # -- clients --------------------------------------------------------------------------

    def _submit(self, request: PoolRequest, plan: Demanded | None, pages: str) -> None:
        """Client and router post to both servers; decode may be first, second, or late."""
        self.requests.append(request)
        if pages == "no decode":
            self.pool.lifecycle.on_request(request, plan)
            return
        request.room = room = 100 + len(self.rooms)
        self.rooms[room] = DecodeSide()
        if pages == "before":
            self._send_pages(room, range(self.pool.tp_size))
        if pages == "prefill is late":
            self.on_the_way.append((request, plan))
            return
        self.pool.lifecycle.on_request(request, plan)
        if pages == "after":
            self._send_pages(room, range(self.pool.tp_size))

    def _send_pages(self, room: int, ranks: Iterable[int]) -> None:
        side = self.rooms[room]
        for rank in ranks:
            if rank not in side.sent and not side.gone:
                side.sent.add(rank)
                self.pool.decode_sends(room, rank)

    @rule(tokens=st.integers(0, 1500), pages=PAGES)
    def arrive(self, tokens: int, pages: str) -> None:
        self._submit(self.pool.request(tokens), None, pages)

    @rule(data=st.data(), pages=PAGES, rests=st.none() | st.integers(0, 1 << 32))
    def arrive_with_plan(self, data: st.DataObject, pages: str, rests: int | None) -> None:
        instances = data.draw(st.permutations(range(len(self.pool.instances))))
        whole = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3), label="pages")
        last = data.draw(st.integers(1, 40))
        sizes = sorted(
            data.draw(st.integers(1, len(instances)), label="size") for _ in range(len(whole) + 1)
        )
        lengths = [n * self.pool.page_size for n in whole] + [last]
        plan = [(n, instances[:s]) for n, s in zip(lengths, sizes, strict=True)]
        request = self.pool.request(sum(lengths))
        if rests is None:
            self._submit(request, plan, pages)
            return
        drawn = drawn_rests(
            tuple((n, tuple(group)) for n, group in plan),
            self.pool.page_size,
            len(instances),
            random.Random(rests),
        )
        self._submit(request, {"plan": plan, "rests": drawn}, pages)

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def reach_the_pool(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.on_the_way) - 1))
        self.pool.lifecycle.on_request(*self.on_the_way.pop(index))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), tokens=st.integers(1, 300))
    def arrive_under_a_name_in_use(self, data: st.DataObject, tokens: int) -> None:
        rid = data.draw(st.sampled_from([request.rid for request in self.requests]))
        self._submit(self.pool.request(tokens, rid=rid), None, "no decode")

    @precondition(lambda self: self.rooms)
    @rule(data=st.data(), tokens=st.integers(1, 300))
    def arrive_in_a_room_in_use(self, data: st.DataObject, tokens: int) -> None:
        room = data.draw(st.sampled_from(sorted(self.rooms)))
        self.shared_rooms.add(room)
        self._submit(self.pool.request(tokens, room=room), None, "no decode")

    @precondition(lambda self: self._live())
    @rule(data=st.data(), everything=st.integers(0, 9).map(lambda n: n == 9))
    def client_aborts(self, data: st.DataObject, everything: bool) -> None:
        rid = data.draw(st.sampled_from([request.rid for request in self._live()]))
        self.pool.lifecycle.on_abort(rid, "aborted by the client", everything=everything)

    def _live(self) -> list[PoolRequest]:
        return [request for request in self.requests if request.phase is not Phase.ENDED]

    # -- decode ---------------------------------------------------------------------------

    @precondition(lambda self: self.rooms)
    @rule(data=st.data(), all_ranks=st.booleans())
    def decode_sends_pages(self, data: st.DataObject, all_ranks: bool) -> None:
        room = data.draw(st.sampled_from(sorted(self.rooms)))
        self._send_pages(room, range(self.pool.tp_size) if all_ranks else [self._rank(data)])

    @precondition(lambda self: self.rooms)
    @rule(data=st.data())
    def decode_uses_a_room_again(self, data: st.DataObject) -> None:
        room = data.draw(st.sampled_from(sorted(self.rooms)))
        self.shared_rooms.add(room)
        self.pool.decode_sends(room, self._rank(data))

    @precondition(lambda self: any(request.room for request in self._live()))
    @rule(data=st.data(), waits=st.booleans())
    def decode_aborts(self, data: st.DataObject, waits: bool) -> None:
        rooms = [request.room for request in self._live() if request.room is not None]
        room = data.draw(st.sampled_from(sorted(rooms)))
        if waits:
            self._abort_room(room, self._rank(data))
        else:
            self.rooms[room].gone = True
            self.pool.lifecycle.on_room_abort(room, None, [b"ABORT", b"%d" % room])

    def _rank(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.pool.tp_size - 1), label="rank")

    def _abort_room(self, room: int, rank: int) -> None:
        self.rooms[room].gone = True
        if rank not in self.rooms[room].aborted:
            self.rooms[room].aborted.add(rank)
            self.pool.decode_aborts(room, rank)

    # -- the pool's insides ---------------------------------------------------------------

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=12), faults=st.booleans())
    def things_happen(self, choices: list[int], faults: bool) -> None:
        self.pool.turn()
        for choice in choices:
            moves = [move for move in self.pool.moves() if faults or not move.fault]
            if moves:
                moves[choice % len(moves)].do()

    @rule(data=st.data())
    def plans_do_without(self, data: st.DataObject) -> None:
        size = len(self.pool.instances)
        seats = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=2), label="seats")
        named = [
            (request, request.plan)
            for request in self._live()
            if request.plan is not None and not seats.isdisjoint(request.plan.instances)
        ]
        stuck = self.pool.lifecycle.replan_without(seats)
        assert set(stuck) <= {request for request, _ in named}
        for request, plan in named:
            if request in stuck:
                assert request.plan is plan
            else:
                assert seats <= request.without

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.pool.now_s += seconds
        self.pool.turn()

    @rule()
    def the_pool_comes_to_rest(self) -> None:
        self.pool.settle()

    # -- seats ----------------------------------------------------------------------------

    def _seats(self, *stands: Stand) -> list[int]:
        presence = self.pool.lifecycle.presence
        return [i for i in range(len(self.pool.instances)) if presence.stand(i) in stands]

    def _busy(self) -> list[int]:
        """Seats on which there is something, or all, of those that are there."""
        there = self._seats(Stand.UP, Stand.DRAINING)
        plans = [request.plan for request in self._live() if request.plan is not None]
        return [i for i in there if any(i in plan.instances for plan in plans)] or there

    def _most_are_up(self) -> bool:
        return 2 * len(self._seats(Stand.UP)) > len(self.pool.instances)

    @precondition(lambda self: self._most_are_up())
    @rule(
        data=st.data(),
        confirmed=st.booleans(),
        arrivals=st.lists(st.tuples(st.integers(1, 600), PAGES), max_size=3),
        choices=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    )
    def a_seat_is_lost_at_work(
        self,
        data: st.DataObject,
        confirmed: bool,
        arrivals: list[tuple[int, str]],
        choices: list[int],
    ) -> None:
        for tokens, pages in arrivals:
            self.arrive(tokens, pages)
        self.things_happen(choices, faults=False)
        seat = data.draw(st.sampled_from(self._busy()), label="seat")
        self.pool.lose(seat)
        if confirmed:
            self.pool.confirm(seat)

    @precondition(lambda self: self._seats(Stand.LOST))
    @rule(data=st.data())
    def a_seat_has_ended(self, data: st.DataObject) -> None:
        self.pool.confirm(data.draw(st.sampled_from(self._seats(Stand.LOST)), label="seat"))

    @precondition(lambda self: self._seats(Stand.DOWN))
    @rule(data=st.data())
    def a_seat_is_filled(self, data: st.DataObject) -> None:
        self.pool.fill(data.draw(st.sampled_from(self._seats(Stand.DOWN)), label="seat"))

    @precondition(lambda self: self._most_are_up())
    @rule(data=st.data())
    def a_seat_drains(self, data: st.DataObject) -> None:
        seat = data.draw(st.sampled_from(self._seats(Stand.UP)), label="seat")
        self.pool.lifecycle.on_seat_draining(seat)

    @precondition(lambda self: self._seats(Stand.DRAINING))
    @rule(data=st.data(), stays=st.booleans())
    def a_drained_seat_stays_or_leaves(self, data: st.DataObject, stays: bool) -> None:
        seat = data.draw(st.sampled_from(self._seats(Stand.DRAINING)), label="seat")
        if stays:
            self.pool.lifecycle.on_seat_up(seat)
        elif self.pool.lifecycle.seat_idle(seat):
            # An order to forget a task may be on its way: nothing of that has begun.
            named = {r.seq for r in self.pool.lifecycle.requests if r.plan and seat in r.reachable}
            assert named.isdisjoint(self.pool.instances[seat].tasks), "a plan names an idle seat"
            assert not self.pool.instances[seat].stock_requests
            self.pool.confirm(seat)

    @precondition(lambda self: self._seats(Stand.LOST, Stand.DOWN))
    @rule(data=st.data(), why=st.sampled_from(["too many deaths", ""]))
    def a_seat_stays_down(self, data: st.DataObject, why: str) -> None:
        seat = data.draw(st.sampled_from(self._seats(Stand.LOST, Stand.DOWN)), label="seat")
        self.pool.lifecycle.on_seat_stays_down(seat, why)

    def _all_seats_come_back(self) -> None:
        for seat in self._seats(Stand.LOST):
            self.pool.confirm(seat)
        for seat in self._seats(Stand.DOWN):
            self.pool.fill(seat)
        for seat in self._seats(Stand.DRAINING):
            self.pool.lifecycle.on_seat_up(seat)

    # -- what must hold -------------------------------------------------------------------

    @invariant()
    def nothing_is_planned_on_an_absent_seat(self) -> None:
        """A plan that names one was made before, and its process cannot be told of it."""
        if not hasattr(self, "pool"):
            return
        for request in self.requests:
            if request.phase in (Phase.BOUND, Phase.RUNNING, Phase.STOCK):
                gone = self._seats(Stand.LOST, Stand.DOWN)
                assert set(request.reachable).isdisjoint(gone)

    @invariant()
    def each_client_hears_at_most_once_from_a_chunked_plan(self) -> None:
        if not hasattr(self, "pool"):
            return
        for request in self.requests:
            answers = self.pool.answers[request.tokenized]
            # One that was not told may answer whoever has been answered for it.
            own_answer = any(who.startswith(self.own_answers) for who in answers)
            lost = request in self.pool.lost_requests
            # SGLang's tokenizer passes on one answer of several homes.
            moved = sum(change.chunk == 0 for change in request.replans)
            again = request.aborted + moved if own_answer else 0
            assert len(answers) <= 1 + again + lost, answers

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        for late in self.on_the_way:
            pool.lifecycle.on_request(*late)
        self._all_seats_come_back()
        pool.settle()
        # Decode gives up what it still waits for; then nothing may be left anywhere.
        assert all(request.phase is Phase.ARRIVED for request in pool.lifecycle.requests)
        self._decode_heard_of_every_failure()
        for room in self.rooms:
            for rank in range(pool.tp_size):
                self._abort_room(room, rank)
        pool.settle()
        # A room's number may have been used again: decode's second request gives up too.
        assert all(request.room in self.shared_rooms for request in pool.lifecycle.requests)
        for room in self.shared_rooms:
            for rank in range(pool.tp_size):
                self.aborts_again[(room, rank)] += 1
                pool.decode_aborts(room, rank)
        pool.settle()
        self._nothing_is_left()
        self._everybody_was_answered()

    def _decode_heard_of_every_failure(self) -> None:
        for request in self.requests:
            if request.room is None or request.room in self.shared_rooms:
                continue
            side = self.rooms[request.room]
            waits = len(side.sent) == self.pool.tp_size and not side.gone
            if waits and request.outcome != "finished" and not self.pool.lost_late[request.room]:
                assert request.room in self.pool.told_failed, "decode waits for ever"

    def _nothing_is_left(self) -> None:
        pool = self.pool
        assert pool.lifecycle.requests == ()
        assert pool.policy.waiting() == ()
        assert pool.ledger.view(pool.now_s).queue_s == (0.0,) * len(pool.instances)
        assert pool.ledger.free_tokens() == (pool.capacity,) * len(pool.instances)
        assert [instance.used for instance in pool.instances] == [0] * len(pool.instances)
        assert all(not pool.rooms.messages(room) for room in self.rooms)

    def _everybody_was_answered(self) -> None:
        pool = self.pool
        assert len(pool.ends) == len(self.requests)
        for request in self.requests:
            assert request.phase is Phase.ENDED
            assert pool.answers[request.tokenized], f"{request.rid} was never answered"
            finished = any(who.endswith("finished") for who in pool.answers[request.tokenized])
            assert finished or request.error
        arrived = [e.room for e in self.requests if e.outcome == "finished" and not e.one_instance]
        told = Counter(room for room in arrived if room is not None) + pool.lost_late
        assert pool.told_finished == told
        expected = Counter({(r, k): 1 for r in self.rooms for k in range(pool.tp_size)})
        expected.update(self.aborts_again)
        assert pool.acks == expected, "each abort of a decode rank is acknowledged once"


SETTINGS = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
