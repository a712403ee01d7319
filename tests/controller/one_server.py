"""A pool of fake instances that decode what they have prefilled: no decode server, no rooms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from sglang_cdsp.controller.homes import home_tokens, output_tokens, with_home
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.parallel.chunk_layout import padded_tokens
from sglang_cdsp.parallel.gather import moves_to_home
from sglang_cdsp.planner.memory import pages
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import (
    AnyReport,
    DecodeEnded,
    MovedIn,
    MovedOut,
    MoveEnded,
    MoveFailed,
    MoveReady,
    OutputState,
    Released,
    Retracted,
    SlotsTaken,
    Streamed,
    StreamedPart,
)
from tests.controller.fake_instance import FakeInstance
from tests.controller.fake_pool import FakePool
from tests.controller.fake_tasks import Client, FakeStockRequest, FakeTask, Move


@dataclass(eq=False)
class Decoding:
    """A request that SGLang itself runs: its slots, and how many more it may take.

    Attributes:
        rid: its id. If another request has it, too, nothing is said of its output.
        generated: how many output tokens it has; the n-th one has the id n.
        sent: how many of them have gone to the client.
    """

    seq: int
    rid: str
    client: Client | None
    held: int = 0
    may_take: int = 0
    unwanted: str = ""
    generated: int = 0
    sent: int = 0

    @property
    def state(self) -> OutputState:
        """What it has when it leaves."""
        return OutputState(tokens=list(range(self.generated)), sent=self.sent)


@dataclass(eq=False)
class Leaving:
    """A request that is to leave: its row once it is out.

    Attributes:
        ahead: rows that go ahead.
        stock: it was one of the instance's own queue.
        failed: it cannot send.
    """

    seq: int
    target: int
    ahead: int
    row: Decoding | None = None
    stock: FakeStockRequest | None = None
    failed: bool = False


@dataclass(eq=False)
class Coming:
    """A request that is to come: what of it has left its source, None before.

    Attributes:
        ahead: rows that come ahead.
        held: slots that it has here.
        cached: of the rows that come ahead, those that are here already.
    """

    seq: int
    source: int
    client: Client | None
    ahead: int
    held: int = 0
    cached: int = 0
    ready: bool = False
    rows: int | None = None
    output: OutputState | None = None


class DecodingInstance(FakeInstance):
    """Gathers prompts in their last chunk, and decodes them."""

    def __init__(self, me: int, pool: FakePool) -> None:
        super().__init__(me, pool)
        self.decoding: dict[int, Decoding] = {}
        self.joined: set[int] = set()
        self.leaving: dict[int, Leaving] = {}
        self.coming: dict[int, Coming] = {}
        self.withdrawn: set[int] = set()
        self.short: dict[int, Decoding] = {}
        self._told = 0

    def end(self) -> None:
        """Nobody decodes here any more."""
        super().end()
        self.decoding, self.leaving, self.coming, self.short = {}, {}, {}, {}

    def moves(self) -> Iterator[Move]:
        """What the instance could do now, decoding among it."""
        yield from super().moves()
        if self._told != self.by_requests:
            yield Move(f"{self.me} tells of {self.by_requests} slots", self._tell)
        if self.paused:
            return
        yield from self._moving_moves()
        for row in list(self.decoding.values()):
            yield Move(f"{self.me} decodes {row.seq} to its end", partial(self._decoded, row))
            grow = partial(self._grow, row)
            yield Move(f"{self.me} decodes a page of {row.seq}", grow, fault=True)
            if not row.unwanted:
                retract = partial(self._retract, row)
                yield Move(f"{self.me} retracts {row.seq}", retract, fault=True)
        for seq, row in list(self.short.items()):
            if not self.stock_requests[seq].unwanted:
                retract = partial(self._retract_short, row)
                yield Move(f"{self.me} retracts {seq}", retract, fault=True)
        for row in (*self.decoding.values(), *self.short.values()):
            step = partial(self._step, row)
            yield Move(f"{self.me} generates a token of {row.seq}", step, fault=True)
            if row.sent < row.generated and not row.unwanted:
                stream = partial(self._stream, row)
                yield Move(f"{self.me} streams {row.seq}", stream, fault=True)

    # -- output ---------------------------------------------------------------------------

    def _step(self, row: Decoding) -> None:
        row.generated += 1

    def _stream(self, row: Decoding, *, ended: bool = False) -> None:
        assert isinstance(self.pool, OneServerPool)
        if self.pool.alone(row.rid):
            tokens = list(range(row.sent, row.generated))
            part = StreamedPart(rid=row.rid, tokens=tokens, ended=ended)
            self._say(0, Streamed, payload=b"", parts=[part])
        row.sent = row.generated

    def _retract(self, row: Decoding) -> None:
        self._let_go(row)
        self._say(0, Retracted, seq=row.seq, output=row.state)

    def _let_go(self, row: Decoding) -> None:
        del self.decoding[row.seq]
        self.used -= row.held
        self.withdrawn.add(row.seq)

    def _retract_short(self, row: Decoding) -> None:
        stock = self.stock_requests.pop(row.seq)
        del self.short[row.seq]
        self.used -= self._held_by(stock)
        self._say(0, Retracted, seq=row.seq, output=row.state)

    def _sample(self, stock: FakeStockRequest) -> None:
        super()._sample(stock)
        self.short[stock.seq] = Decoding(stock.seq, stock.rid, stock.client, generated=1)

    def _leave(self, stock: FakeStockRequest, error: str) -> None:
        row = self.short.pop(stock.seq, None)
        if row is not None:
            self._stream(row, ended=True)
        super()._leave(stock, error)

    def _answer(self, client: Client, who: str) -> None:
        """Answers go by way of the controller, which passes on nothing of what was given up."""
        if not self.lost:
            super()._answer(client, who)

    def _tell(self) -> None:
        self._told = self.by_requests
        self._say(0, SlotsTaken, tokens=self._told)

    @property
    def by_requests(self) -> int:
        """Slots of requests that SGLang itself runs."""
        stock = sum(self._held_by(request) for request in self.stock_requests.values())
        out = [move.row.held for move in self.leaving.values() if move.row is not None]
        return stock + sum(out) + sum(row.held for row in self.decoding.values())

    def _grow(self, row: Decoding) -> None:
        if row.may_take >= self.pool.page_size:
            row.may_take -= self.pool.page_size
            row.held += self.pool.page_size
            self._take(self.pool.page_size)

    def _decoded(self, row: Decoding) -> None:
        del self.decoding[row.seq]
        self.used -= row.held
        assert row.client is not None
        row.generated += 1
        self._stream(row, ended=True)
        self._answer(row.client, "home failed" if row.unwanted else "home finished")
        self._say(0, DecodeEnded, seq=row.seq, error=row.unwanted)

    # -- running requests that move -------------------------------------------------------

    def _moving_moves(self) -> Iterator[Move]:
        for leaving in list(self.leaving.values()):
            seq = leaving.seq
            if leaving.row is None and leaving.ahead:
                fail = partial(self._cannot_send_ahead, leaving)
                yield Move(f"{self.me} cannot send ahead {seq}", fail, fault=True)
            if leaving.row is None and seq in self.tasks:
                continue  # other members are not done with it
            if leaving.row is None:
                yield Move(f"{self.me} takes {seq} out", partial(self._take_out, leaving))
                stays = partial(self._stays, leaving)
                yield Move(f"{self.me} cannot take {seq} out", stays, fault=True)
            elif not leaving.failed:
                fail = partial(self._cannot_send, leaving)
                yield Move(f"{self.me} cannot send {seq}", fail, fault=True)
        for coming in list(self.coming.values()):
            yield from self._coming_moves(coming)

    def _coming_moves(self, coming: Coming) -> Iterator[Move]:
        seq, refuse = coming.seq, partial(self._refuse, coming)
        if not coming.ready:
            yield Move(f"{self.me} gets ready for {seq}", partial(self._ready, coming))
            had = partial(self._ready, coming, min(coming.ahead, self.pool.page_size))
            yield Move(f"{self.me} has a page cached of {seq}", had, fault=True)
            yield Move(f"{self.me} does not take {seq}", refuse, fault=True)
        elif coming.rows is not None:
            source = self.pool.instances[coming.source]
            assert isinstance(source, DecodingInstance)
            sends = source.leaving.get(seq)
            # What a source had sent before it broke, or was lost, may be all there is.
            gone = sends is None or source.lost
            broken = gone or (sends is not None and sends.failed)
            arrive = partial(self._arrived, coming)
            yield Move(f"all of {seq} has come to {self.me}", arrive, fault=broken)
            yield Move(f"{self.me} loses its link for {seq}", refuse, fault=not gone)

    def on_move_in(self, seq: int, source: int, client: Client | None, ahead: int) -> None:
        """Get ready for a request."""
        assert seq not in self.coming
        assert seq not in self.decoding
        self.coming[seq] = Coming(seq, source, client, ahead)

    def _ready(self, coming: Coming, cached: int = 0) -> None:
        coming.ready, coming.cached = True, cached
        self._take_for(coming, coming.ahead)
        self._say(0, MoveReady, seq=coming.seq, held=cached)

    def _refuse(self, coming: Coming) -> None:
        self._forget_coming(coming)
        self._say(0, MoveFailed, seq=coming.seq, error="it cannot go on here")

    def _forget_coming(self, coming: Coming) -> None:
        del self.coming[coming.seq]
        self.used -= coming.held

    def _take_for(self, coming: Coming, rows: int) -> None:
        self._take(rows - coming.held)
        coming.held = rows

    def on_move_out(self, seq: int, target: int, ahead: int) -> None:
        """Take a request out between two steps, when all are done with its plan."""
        assert seq not in self.leaving
        self.leaving[seq] = Leaving(seq, target, ahead)

    def _take_out(self, leaving: Leaving) -> None:
        seq = leaving.seq
        start_s, end_s = None, None
        if seq in self.decoding and not self.decoding[seq].unwanted:
            row = self.decoding.pop(seq)
        elif seq in self.short and not self.stock_requests[seq].unwanted:
            leaving.stock, row = self.stock_requests.pop(seq), self.short.pop(seq)
            row.held = self._held_by(leaving.stock)
            start_s, end_s = 1.0, 2.0
        else:
            del self.leaving[seq]
            self._say(0, MoveFailed, seq=seq, error="it has ended")
            return
        leaving.row = row
        assert leaving.ahead <= row.held
        said = {"rows": row.held, "output": row.state, "start_s": start_s, "end_s": end_s}
        said["ahead"] = leaving.ahead
        self._say(0, MovedOut, seq=seq, **said)

    def _held_by(self, stock: FakeStockRequest) -> int:
        return pages(stock.tokens, self.pool.page_size) * self.pool.page_size

    def _stays(self, leaving: Leaving) -> None:
        del self.leaving[leaving.seq]
        self._say(0, MoveFailed, seq=leaving.seq, error="a logit processor", stays=True)

    def _cannot_send(self, leaving: Leaving) -> None:
        """It keeps the request: the target may have all of it."""
        leaving.failed = True
        self._say(0, MoveFailed, seq=leaving.seq, error="a link broke")

    def _cannot_send_ahead(self, leaving: Leaving) -> None:
        """It keeps the request, of which nothing has left it."""
        del self.leaving[leaving.seq]
        self._say(0, MoveFailed, seq=leaving.seq, error="a link broke")

    def on_moved(self, seq: int, rows: int, output: OutputState) -> None:
        """The source sends so many rows; a target that has refused meanwhile takes none."""
        if seq in self.coming:
            self.coming[seq].rows, self.coming[seq].output = rows, output
            self._take_for(self.coming[seq], rows)

    def _arrived(self, coming: Coming) -> None:
        del self.coming[coming.seq]
        assert coming.rows is not None
        assert coming.output is not None
        assert isinstance(self.pool, OneServerPool)
        promised, rid, _ = self.pool.homes[coming.seq]
        row = Decoding(coming.seq, rid, coming.client, coming.rows)
        row.may_take = max(0, promised - len(coming.output.tokens))
        row.generated, row.sent = len(coming.output.tokens), coming.output.sent
        self.decoding[coming.seq] = row
        self.joined.add(coming.seq)
        self._say(0, MovedIn, seq=coming.seq)

    def on_move_end(self, seq: int, moved: bool) -> None:
        """The move is over: free what moved, put back what did not, forget what does not come."""
        if seq in self.leaving:
            leaving = self.leaving.pop(seq)
            if leaving.row is not None and moved:
                self.used -= leaving.row.held
            elif leaving.row is not None:
                self._put_back(leaving, leaving.row)
            self._say(0, MoveEnded, seq=seq)
        elif seq in self.coming:
            assert not moved
            self._forget_coming(self.coming[seq])
            self._say(0, MoveEnded, seq=seq)
        else:
            assert not moved, "who has it to free was told before"

    def _put_back(self, leaving: Leaving, row: Decoding) -> None:
        if leaving.stock is not None:
            self.stock_requests[row.seq], self.short[row.seq] = leaving.stock, row
        else:
            self.decoding[row.seq] = row

    # -- the whole prompt comes home ------------------------------------------------------

    def _decodes(self, task: FakeTask) -> bool:
        return task.home == self.me and task.client is not None

    def _need(self, task: FakeTask) -> int:
        need = super()._need(task)
        if self._decodes(task) and task.final:
            layout = task.layouts[task.next_chunk]
            gathered = [move.span for move in moves_to_home(layout, task.reused)]
            need += padded_tokens(gathered, self.pool.page_size)
        return need

    def _end(self, task: FakeTask, *, fails: bool = False) -> None:
        final = task.final and self._decodes(task)
        if final and not fails:
            # What would leave stays, and belongs to the request from now on.
            moves = task.layouts[task.next_chunk].moves
            leaving = task.own([m.span for m in moves if m.src == self.me], self.me)
            kept = padded_tokens(leaving, self.pool.page_size)
            task.held += kept
            self.used += kept
        super()._end(task, fails=fails)
        if final and not fails:
            assert isinstance(self.pool, OneServerPool)
            promised, rid, before = self.pool.homes[task.seq]
            row = Decoding(task.seq, rid, task.client, task.held, promised)
            if before is not None:
                row.generated, row.sent = len(before.tokens), before.sent
            row.generated += 1
            self.decoding[task.seq] = row
            task.held = 0
            self.joined.add(task.seq)

    def on_stop(self, seq: int, *, resumes: bool = False) -> None:
        """A request that decodes already is aborted, or is computed anew."""
        row = self.decoding.get(seq)
        if row is not None and resumes and not row.unwanted:
            self._let_go(row)
        elif row is not None:
            self.on_cancel(seq)
        super().on_stop(seq, resumes=resumes)

    def on_cancel(self, seq: int) -> None:
        """Abort a request, wherever it is."""
        if seq in self.decoding:
            self.decoding[seq].unwanted = "aborted"
        super().on_cancel(seq)

    def on_release(self, seq: int, error: str, silent: bool) -> None:
        """Free the slots; what decodes keeps its own, and is answered when it ends."""
        if seq not in self.joined:
            super().on_release(seq, error, silent)
            return
        task = self.tasks.pop(seq)
        self._pop(task)
        assert task.held == 0
        self._say(0, Released, seq=seq, joined=seq not in self.withdrawn)


class OneServerPool(FakePool):
    """A pool whose requests are decoded at their home.

    Attributes:
        homes: by sequence number what is promised of each task's output, its id, and what it goes
            on from.
        moves_seen: running requests that moved: id, source and target.
        seen: how many output tokens each client has seen.
    """

    make_instance = DecodingInstance

    def __init__(self, **options: object) -> None:
        self.homes: dict[int, tuple[int, str, OutputState | None]] = {}
        self.moves_seen: list[tuple[str, int, int]] = []
        self.seen: Counter[str] = Counter()
        self._move_lanes: dict[int, tuple[int, set[int]]] = {}
        self._rids: Counter[str] = Counter()
        super().__init__(**options)  # type: ignore[arg-type]

    def request(
        self, tokens: int, *, rid: str | None = None, room: int | None = None
    ) -> PoolRequest:
        """A client's request; it names no decode server."""
        request = super().request(tokens, rid=rid)
        self._rids[request.rid] += 1
        request.decodes, request.longest_output = True, 100
        request.output_tokens = output_tokens(tokens, 100, self.page_size, self.capacity)
        return request

    def alone(self, rid: str) -> bool:
        """Whether only one request has had an id."""
        return self._rids[rid] == 1

    def _demand(self, request: PoolRequest, slots: dict[int, int], home: int) -> dict[int, int]:
        state, rid = request.resumes, request.rid
        if state is not None:
            assert request.tokens == request.prompt_tokens + len(state.tokens)
            if self.alone(rid):
                assert state.sent == self.seen[rid], (
                    "what was seen is neither repeated nor left out"
                )
        self.homes[request.seq] = (request.output_tokens, rid, state)
        return with_home(slots, home, request, self.page_size)

    def _promise(self, request: PoolRequest, slots: dict[int, int]) -> None:
        self._leave_homes_alone()
        super()._promise(request, slots)

    def _check_free(self, free: tuple[int, ...], expected: tuple[int, ...]) -> None:
        """What decodes may hold more than it was promised, and is said to."""
        assert all(said <= there for said, there in zip(free, expected, strict=True))

    def move_in(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int
    ) -> None:
        """The target gets ready, with slots promised to it."""
        assert request.home != target
        assert ahead % self.page_size == 0
        assert serial > self._last_serial, "each use of a lane has a number of its own"
        self._last_serial = serial
        need = home_tokens(request, self.page_size)
        assert need >= ahead
        ends = {request.home, target}
        for chunk, (other, group) in self._lanes.items():
            inside = self.left[chunk] < group
            assert not (inside and other == lane and group & ends), "a chunk has that lane"
        self._no_move_on(lane, ends)
        self._move_lanes[request.seq] = (lane, ends)
        self._promised[_coming(request.seq)] = {target: need}
        self._promise(request, self._promised[request.seq])
        ahead = self._prompt_of(request, ahead)
        at = self._decoding_at(target)
        at.order(partial(at.on_move_in, request.seq, request.home, request.tokenized, ahead))

    def _no_move_on(self, lane: int, members: set[int]) -> None:
        """Nobody who shares an instance may still send on a lane for a move."""
        for seq, (other, ends) in self._move_lanes.items():
            at = [self._decoding_at(end) for end in ends & members]
            if other == lane:
                assert not any(seq in end.leaving or seq in end.coming for end in at)

    def _check_lane(self, request: PoolRequest, members: set[int]) -> None:
        super()._check_lane(request, members)
        self._no_move_on(request.lane, members)

    def _prompt_of(self, request: PoolRequest, ahead: int) -> int:
        """Of what goes ahead the part that takes slots here: output takes them as drawn."""
        return min(ahead, pages(request.tokens, self.page_size) * self.page_size)

    def move_out(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int, held: int
    ) -> None:
        """The source takes it out."""
        at = self._decoding_at(request.home)
        assert held <= ahead
        assert held == self._decoding_at(target).coming[request.seq].cached
        ahead = self._prompt_of(request, ahead)
        at.order(partial(at.on_move_out, request.seq, target, ahead))

    def moved(
        self, request: PoolRequest, target: int, rows: int, output: OutputState, ahead: int
    ) -> None:
        """The target hears what comes."""
        assert request.phase in (Phase.DECODING, Phase.STOCK), "its plan is over everywhere"
        assert ahead <= rows
        assert ahead % self.page_size == 0
        if self.alone(request.rid):
            assert output.sent == self.seen[request.rid], "it goes on where its client is"
        at = self._decoding_at(target)
        at.order(partial(at.on_moved, request.seq, rows, output))

    def move_end(self, seq: int, instance: int, *, moved: bool) -> None:
        """An instance hears that a move is over."""
        at = self._decoding_at(instance)
        at.order(partial(at.on_move_end, seq, moved))

    def move_over(self, request: PoolRequest) -> None:
        """It has another home."""
        assert request.phase is Phase.DECODING
        self._promised[request.seq].update(self._promised.pop(_coming(request.seq)))
        self.moves_seen.append((request.rid, request.moves[-1].source, request.moves[-1].target))

    def _decoding_at(self, instance: int) -> DecodingInstance:
        at = self.instances[instance]
        assert isinstance(at, DecodingInstance)
        return at

    def replan(self, request: PoolRequest, before: Plan) -> None:
        """A rest keeps its home; a plan of which nothing has run may get another one."""
        assert request.plan is not None
        assert not request.next_chunk or request.plan.home == before.home
        super().replan(request, before)

    def moves(self) -> list[Move]:
        """Everything that could happen next; that a request ends comes last."""
        return sorted(super().moves(), key=lambda move: move.name.endswith("to its end"))

    def hear(self, report: AnyReport) -> None:
        """A report reaches the controller, which may leave a request to its home alone."""
        if self.instances[report.instance].lost:
            return  # nobody listens to who was given up: see ``SeatKeeper.on_report``
        if isinstance(report, Streamed):
            self._pass_on(report)
        super().hear(report)
        self._leave_homes_alone()

    def hear_all(self) -> None:
        """Every report that is under way reaches the controller."""
        for reports in self.channels.values():
            while reports:
                self._hear_next(reports)

    def _pass_on(self, report: Streamed) -> None:
        """Output goes to the clients."""
        for part in report.parts:
            begin = self.seen[part.rid]
            assert part.tokens == list(range(begin, begin + len(part.tokens))), (
                "output comes twice, or not at all"
            )
            self.seen[part.rid] += len(part.tokens)

    def _names(self, request: PoolRequest, seat: int) -> bool:
        """What is on its way to a seat may be nowhere else any more."""
        move = self.lifecycle._moves._moves.get(request.seq)
        return super()._names(request, seat) or (move is not None and seat == move.target)

    def recalled(self, request: PoolRequest) -> None:
        """A request is back among those that wait, whatever of its plan has run."""
        assert request.phase is Phase.WAITING
        assert not request.error
        self._promised.pop(request.seq, None)

    def _leave_homes_alone(self) -> None:
        """Only who decodes, or is to, is promised anything of what decodes."""
        for key in [key for key in self._promised if key < 0]:
            move = self.lifecycle._moves._moves.get(_coming(key))
            if move is None or move.target not in move.inside:
                del self._promised[key]
        for request in self.lifecycle._table.with_plan:
            runs = request.phase in (Phase.DECODING, Phase.STOCK)
            if runs and request.plan is not None and request.seq in self._promised:
                promised = self._promised[request.seq]
                kept = [seat for seat in promised if self._has_part(request, seat)]
                self._promised[request.seq] = {seat: promised[seat] for seat in kept}

    def _has_part(self, request: PoolRequest, seat: int) -> bool:
        """Whether a seat decodes a request."""
        return seat == request.home


def _coming(seq: int) -> int:
    """Under which number the promise of a move's target is noted, and back.

    Below -1, which is the number of every request that has no plan yet.
    """
    return -2 - seq
