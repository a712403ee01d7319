"""A pool of fake instances that decode what they have prefilled: no decode server, no rooms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from sglang_cdsp.controller.homes import output_tokens, with_home
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.parallel.chunk_layout import padded_tokens
from sglang_cdsp.parallel.gather import moves_to_home
from sglang_cdsp.planner.memory import pages
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import (
    AnyReport,
    DecodeEnded,
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
        """What it has when it is retracted."""
        return OutputState(tokens=list(range(self.generated)), sent=self.sent)


class DecodingInstance(FakeInstance):
    """Gathers prompts in their last chunk, and decodes them."""

    def __init__(self, me: int, pool: FakePool) -> None:
        super().__init__(me, pool)
        self.decoding: dict[int, Decoding] = {}
        self.joined: set[int] = set()
        self.withdrawn: set[int] = set()
        self.short: dict[int, Decoding] = {}

    def end(self) -> None:
        """Nobody decodes here any more."""
        super().end()
        self.decoding, self.short = {}, {}

    def moves(self) -> Iterator[Move]:
        """What the instance could do now, decoding among it."""
        yield from super().moves()
        told = self.by_requests
        tell = partial(self._say, 0, SlotsTaken, tokens=told)
        yield Move(f"{self.me} tells of {told} slots", tell, fault=True)
        if self.paused:
            return
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
        self.used -= pages(stock.tokens, self.pool.page_size) * self.pool.page_size
        self._say(0, Retracted, seq=row.seq, output=row.state)

    def _sample(self, stock: FakeStockRequest) -> None:
        super()._sample(stock)
        self.short[stock.seq] = Decoding(stock.seq, stock.rid, stock.client, generated=1)

    def _leave(self, stock: FakeStockRequest, error: str) -> None:
        row = self.short.pop(stock.seq, None)
        if row is not None:
            self._stream(row, ended=True)
        super()._leave(stock, error)

    @property
    def by_requests(self) -> int:
        """Slots of requests that SGLang itself runs."""
        page = self.pool.page_size
        stock = sum(pages(s.tokens, page) * page for s in self.stock_requests.values())
        return stock + sum(row.held for row in self.decoding.values())

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
        self.pool.answered(row.client, "home failed" if row.unwanted else "home finished")
        self._say(0, DecodeEnded, seq=row.seq, error=row.unwanted)

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
            promised, rid, before = self.pool.homes[task.seq]
            row = Decoding(task.seq, rid, task.client, task.held, promised)
            if before is not None:
                row.generated, row.sent = len(before.tokens), before.sent
            row.generated += 1
            self.decoding[task.seq] = row
            task.held = 0
            self.joined.add(task.seq)

    def on_stop(self, seq: int, *, resumes: bool = False) -> None:
        """A request that decodes already is aborted, or goes on elsewhere."""
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
        seen: how many output tokens each client has seen.
    """

    make_instance = DecodingInstance

    def __init__(self, **options: object) -> None:
        self.homes: dict[int, tuple[int, str, OutputState | None]] = {}
        self.seen: Counter[str] = Counter()
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
        if isinstance(report, Streamed) and not self.instances[report.instance].lost:
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
            assert part.tokens == list(range(begin, begin + len(part.tokens)))
            self.seen[part.rid] += len(part.tokens)

    def recalled(self, request: PoolRequest) -> None:
        """A request is back among those that wait, whatever of its plan has run."""
        assert request.phase is Phase.WAITING
        assert not request.error
        self._promised.pop(request.seq, None)

    def _leave_homes_alone(self) -> None:
        """Only the homes of what decodes are promised anything."""
        for request in self.lifecycle.requests:
            if request.phase is Phase.DECODING and request.plan is not None:
                home, promised = request.plan.home, self._promised[request.seq]
                self._promised[request.seq] = {home: promised[home]}
