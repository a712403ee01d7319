"""A pool of fake instances that decode what they have prefilled: no decode server, no rooms."""

from __future__ import annotations

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
    Released,
    SlotsTaken,
)
from tests.controller.fake_instance import FakeInstance
from tests.controller.fake_pool import FakePool
from tests.controller.fake_tasks import Client, FakeTask, Move


@dataclass(eq=False)
class Decoding:
    """A request that SGLang itself runs: its slots, and how many more it may take."""

    seq: int
    client: Client | None
    held: int
    may_take: int
    unwanted: str = ""


@dataclass(eq=False)
class Leaving:
    """A running request that is to leave: its row once it is out."""

    seq: int
    target: int
    row: Decoding | None = None


@dataclass(eq=False)
class Coming:
    """A running request that is to come: what of it has left its source, None before."""

    seq: int
    source: int
    client: Client | None
    ready: bool = False
    tokens: int | None = None


class DecodingInstance(FakeInstance):
    """Gathers prompts in their last chunk, and decodes them."""

    def __init__(self, me: int, pool: FakePool) -> None:
        super().__init__(me, pool)
        self.decoding: dict[int, Decoding] = {}
        self.joined: set[int] = set()
        self.leaving: dict[int, Leaving] = {}
        self.coming: dict[int, Coming] = {}

    def end(self) -> None:
        """Nobody decodes here any more."""
        super().end()
        self.decoding, self.leaving, self.coming = {}, {}, {}

    def moves(self) -> Iterator[Move]:
        """What the instance could do now, decoding among it."""
        yield from super().moves()
        told = self.by_requests
        tell = partial(self._say, 0, SlotsTaken, tokens=told)
        yield Move(f"{self.me} tells of {told} slots", tell, fault=True)
        if self.paused:
            return
        yield from self._moving_moves()
        for row in list(self.decoding.values()):
            yield Move(f"{self.me} decodes {row.seq} to its end", partial(self._decoded, row))
            grow = partial(self._grow, row)
            yield Move(f"{self.me} decodes a page of {row.seq}", grow, fault=True)

    @property
    def by_requests(self) -> int:
        """Slots of requests that SGLang itself runs."""
        page = self.pool.page_size
        stock = sum(pages(s.tokens, page) * page for s in self.stock_requests.values())
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
        self.pool.answered(row.client, "home failed" if row.unwanted else "home finished")
        self._say(0, DecodeEnded, seq=row.seq, error=row.unwanted)

    # -- running requests that move -------------------------------------------------------

    def _moving_moves(self) -> Iterator[Move]:
        for leaving in list(self.leaving.values()):
            if leaving.row is None:
                out = partial(self._take_out, leaving)
                yield Move(f"{self.me} takes {leaving.seq} out", out)
                stays = partial(self._stays, leaving)
                yield Move(f"{self.me} cannot take {leaving.seq} out", stays, fault=True)
        for coming in list(self.coming.values()):
            if not coming.ready:
                yield Move(f"{self.me} gets ready for {coming.seq}", partial(self._ready, coming))
                refuse = partial(self._refuse, coming)
                yield Move(f"{self.me} does not take {coming.seq}", refuse, fault=True)
            elif coming.tokens is not None:
                source = self.pool.instances[coming.source]
                assert isinstance(source, DecodingInstance)
                sends = source.leaving.get(coming.seq)
                if sends is not None and sends.row is not None:
                    name = f"all of {coming.seq} has come to {self.me}"
                    yield Move(name, partial(self._arrived, coming, sends.row))

    def on_move_in(self, seq: int, source: int, client: Client | None) -> None:
        """Get ready for a running request."""
        assert seq not in self.coming
        self.coming[seq] = Coming(seq, source, client)

    def _ready(self, coming: Coming) -> None:
        coming.ready = True
        self._say(0, MoveReady, seq=coming.seq)

    def _refuse(self, coming: Coming) -> None:
        self._forget_coming(coming)
        self._say(0, MoveFailed, seq=coming.seq, error="its grammar does not compile here")

    def _forget_coming(self, coming: Coming) -> None:
        del self.coming[coming.seq]
        self.used -= coming.tokens or 0

    def on_move_out(self, seq: int, target: int) -> None:
        """Take a running request out between two steps."""
        assert seq not in self.leaving
        self.leaving[seq] = Leaving(seq, target)

    def _take_out(self, leaving: Leaving) -> None:
        seq, page = leaving.seq, self.pool.page_size
        start_s, end_s = None, None
        if seq in self.decoding and not self.decoding[seq].unwanted:
            leaving.row = self.decoding.pop(seq)
        elif seq in self.stock_requests and not self.stock_requests[seq].unwanted:
            stock = self.stock_requests.pop(seq)
            assert stock.sampled, "who has no token has no state to move"
            leaving.row = Decoding(seq, stock.client, pages(stock.tokens, page) * page, 0)
            start_s, end_s = 1.0, 2.0
        else:
            del self.leaving[seq]
            self._say(0, MoveFailed, seq=seq, error="it has ended")
            return
        held = leaving.row.held
        said = {"tokens": held, "state": b"state", "start_s": start_s, "end_s": end_s}
        self._say(0, MovedOut, seq=seq, **said)

    def _stays(self, leaving: Leaving) -> None:
        del self.leaving[leaving.seq]
        self._say(0, MoveFailed, seq=leaving.seq, error="a logit processor", stays=True)

    def on_moved(self, seq: int, tokens: int) -> None:
        """The source sends so many rows; a target that has refused meanwhile takes none."""
        if seq in self.coming:
            self.coming[seq].tokens = tokens
            self._take(tokens)

    def _arrived(self, coming: Coming, row: Decoding) -> None:
        del self.coming[coming.seq]
        assert coming.tokens == row.held
        self.decoding[coming.seq] = Decoding(coming.seq, coming.client, row.held, row.may_take)
        self.joined.add(coming.seq)
        self._say(0, MovedIn, seq=coming.seq)

    def on_move_end(self, seq: int, moved: bool) -> None:
        """The move is over: free what moved, put back what did not, forget what does not come."""
        if seq in self.leaving:
            row = self.leaving.pop(seq).row
            if row is not None and moved:
                self.used -= row.held
            elif row is not None:
                self.decoding[seq] = row
                self.joined.add(seq)
            self._say(0, MoveEnded, seq=seq)
        elif seq in self.coming:
            assert not moved
            self._forget_coming(self.coming[seq])
            self._say(0, MoveEnded, seq=seq)
        elif not moved:
            self.on_cancel(seq)

    # -- the whole prompt comes home ------------------------------------------------------

    def _decodes(self, task: FakeTask) -> bool:
        return task.home == self.me and task.client is not None

    def _need(self, task: FakeTask) -> int:
        need = super()._need(task)
        if self._decodes(task) and task.final:
            gathered = [move.span for move in moves_to_home(task.layouts[task.next_chunk])]
            need += padded_tokens(gathered, self.pool.page_size)
        return need

    def _end(self, task: FakeTask, *, fails: bool = False) -> None:
        final = task.final and self._decodes(task)
        if final and not fails:
            # What would leave stays, and belongs to the request from now on.
            moves = task.layouts[task.next_chunk].moves
            kept = padded_tokens([m.span for m in moves if m.src == self.me], self.pool.page_size)
            task.held += kept
            self.used += kept
        super()._end(task, fails=fails)
        if final and not fails:
            assert isinstance(self.pool, OneServerPool)
            promised = self.pool.output_tokens[task.seq]
            self.decoding[task.seq] = Decoding(task.seq, task.client, task.held, promised)
            task.held = 0
            self.joined.add(task.seq)

    def on_stop(self, seq: int) -> None:
        """A request that decodes already is aborted."""
        if seq in self.decoding:
            self.on_cancel(seq)
        super().on_stop(seq)

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
        self._say(0, Released, seq=seq, joined=True)


class OneServerPool(FakePool):
    """A pool whose requests are decoded at their home.

    Attributes:
        output_tokens: what is promised of each task's output, by sequence number.
        moves_seen: running requests that moved: id, source and target.
    """

    make_instance = DecodingInstance

    def __init__(self, **options: object) -> None:
        self.output_tokens: dict[int, int] = {}
        self.moves_seen: list[tuple[str, int, int]] = []
        super().__init__(**options)  # type: ignore[arg-type]

    def request(
        self, tokens: int, *, rid: str | None = None, room: int | None = None
    ) -> PoolRequest:
        """A client's request; it names no decode server."""
        request = super().request(tokens, rid=rid)
        request.decodes = True
        request.output_tokens = output_tokens(tokens, 100, self.page_size, self.capacity)
        return request

    def _demand(self, request: PoolRequest, slots: dict[int, int], home: int) -> dict[int, int]:
        self.output_tokens[request.seq] = request.output_tokens
        return with_home(slots, home, request, self.page_size)

    def _promise(self, request: PoolRequest, slots: dict[int, int]) -> None:
        self._leave_homes_alone()
        super()._promise(request, slots)

    def _check_free(self, free: tuple[int, ...], expected: tuple[int, ...]) -> None:
        """What decodes may hold more than it was promised, and is said to."""
        assert all(said <= there for said, there in zip(free, expected, strict=True))

    def move_in(self, request: PoolRequest, target: int, lane: int, serial: int) -> None:
        """The target gets ready, with slots promised to it."""
        assert request.decoder != target
        assert serial > self._last_serial, "each use of a lane has a number of its own"
        self._last_serial = serial
        need = home_tokens(request, self.page_size)
        promised = self._promised[request.seq]
        self._promise(request, {request.decoder: promised[request.decoder], target: need})
        at = self._decoding_at(target)
        at.order(partial(at.on_move_in, request.seq, request.decoder, request.tokenized))

    def move_out(self, request: PoolRequest, target: int, lane: int, serial: int) -> None:
        """The source takes it out."""
        at = self._decoding_at(request.decoder)
        at.order(partial(at.on_move_out, request.seq, target))

    def moved(self, request: PoolRequest, target: int, tokens: int, state: bytes) -> None:
        """The target hears what comes."""
        assert state == b"state"
        at = self._decoding_at(target)
        at.order(partial(at.on_moved, request.seq, tokens))

    def move_end(self, seq: int, instance: int, *, moved: bool) -> None:
        """An instance hears that a move is over."""
        at = self._decoding_at(instance)
        at.order(partial(at.on_move_end, seq, moved))

    def move_over(self, request: PoolRequest) -> None:
        """It goes on elsewhere."""
        assert request.phase is Phase.DECODING
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
        super().hear(report)
        self._leave_homes_alone()

    def _leave_homes_alone(self) -> None:
        """Only who decodes, or is to, is promised anything of what decodes."""
        for request in self.lifecycle.requests:
            runs = request.phase in (Phase.DECODING, Phase.STOCK)
            if runs and request.plan is not None and request.seq in self._promised:
                promised = self._promised[request.seq]
                kept = [seat for seat in promised if self._has_part(request, seat)]
                self._promised[request.seq] = {seat: promised[seat] for seat in kept}

    def _has_part(self, request: PoolRequest, seat: int) -> bool:
        """Whether a seat decodes a request, or is to."""
        return seat == request.decoder or request.seq in self._decoding_at(seat).coming
