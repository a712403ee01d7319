"""A pool of fake instances that decode what they have prefilled: no decode server, no rooms."""

from __future__ import annotations

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
from sglang_cdsp.protocol.messages import AnyReport, DecodeEnded, Released, SlotsTaken
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


class DecodingInstance(FakeInstance):
    """Gathers prompts in their last chunk, and decodes them."""

    def __init__(self, me: int, pool: FakePool) -> None:
        super().__init__(me, pool)
        self.decoding: dict[int, Decoding] = {}
        self.joined: set[int] = set()
        self._told = 0

    def end(self) -> None:
        """Nobody decodes here any more."""
        super().end()
        self.decoding = {}

    def moves(self) -> Iterator[Move]:
        """What the instance could do now, decoding among it."""
        yield from super().moves()
        if self._told != self.by_requests:
            yield Move(f"{self.me} tells of {self.by_requests} slots", self._tell)
        if self.paused:
            return
        for row in list(self.decoding.values()):
            yield Move(f"{self.me} decodes {row.seq} to its end", partial(self._decoded, row))
            grow = partial(self._grow, row)
            yield Move(f"{self.me} decodes a page of {row.seq}", grow, fault=True)

    def _tell(self) -> None:
        self._told = self.by_requests
        self._say(0, SlotsTaken, tokens=self._told)

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
    """

    make_instance = DecodingInstance

    def __init__(self, **options: object) -> None:
        self.output_tokens: dict[int, int] = {}
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
        """Only the homes of what decodes are promised anything."""
        for request in self.lifecycle.requests:
            if request.phase is Phase.DECODING and request.plan is not None:
                home, promised = request.plan.home, self._promised[request.seq]
                self._promised[request.seq] = {home: promised[home]}
