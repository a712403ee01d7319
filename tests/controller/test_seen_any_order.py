"""What people are told of a pool, under any order of arrivals, progress, failures and losses.

Counters count each request, chunk and loss once and never go back, and every plan log can be drawn.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from hypothesis import settings

from sglang_cdsp.controller.exported.observer import ExportedMetrics
from sglang_cdsp.controller.plan_log import record
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_log import line
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import AnyReport, ChunkDone
from sglang_cdsp.timeline.gantt import text
from sglang_cdsp.timeline.read import read_run
from sglang_cdsp.timeline.trace import trace
from tests.controller.any_order import SETTINGS, AnyOrder
from tests.controller.fake_pool import FakePool
from tests.controller.one_server import OneServerPool
from tests.controller.one_server_order import AnyOrderOfOneServer
from tests.controller.strict_instruments import StrictInstruments
from tests.timeline.logs import write

CHUNK_TOKENS = "chunk_tokens_total"


class SeenPool(FakePool):
    """A pool that is watched; observers hear of an effect after it, as from the dispatcher.

    Attributes:
        exported: its metrics.
        records: its plan log.
        lines: its log.
        done: members that told of a chunk's end, by ``(seq, chunk)``.
        fills: how often a seat came back.
        resumed: how often a request was to go on from output.
    """

    def __init__(self, *, size: int = 4, tp_size: int = 1, **more: Any) -> None:
        self.exported = StrictInstruments()
        self._metrics = ExportedMetrics(
            self.exported, seats=size, tp_size=tp_size, sp_sizes=(1, 2, 4)
        )
        self.records: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.done: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self.fills: Counter[int] = Counter()
        self.resumed = 0
        super().__init__(size=size, tp_size=tp_size, **more)

    def hear(self, report: AnyReport) -> None:
        super().hear(report)
        if isinstance(report, ChunkDone):
            self.done[(report.seq, report.chunk)].add(report.instance)
        self._metrics.on_report(report)

    def bind(self, request: PoolRequest) -> None:
        super().bind(request)
        self._metrics.bound(request)

    def replan(self, request: PoolRequest, before: Plan) -> None:
        super().replan(request, before)
        self._metrics.replanned(request)

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        super().go(request, instances)
        self._metrics.chunk_started(request)

    def stop(self, request: PoolRequest, instances: Iterable[int]) -> None:
        super().stop(request, instances)
        self._metrics.stopped(request)

    def lost(self, request: PoolRequest) -> None:
        assert request not in self.lost_requests, "a request is lost once"
        super().lost(request)
        self._metrics.lost(request)

    def recalled(self, request: PoolRequest) -> None:
        super().recalled(request)
        before = self.exported.total(CHUNK_TOKENS)
        self._metrics.recalled(request)
        self._check_chunks(request, self.exported.total(CHUNK_TOKENS) - before)
        self.resumed += bool(request.output.tokens or request.carried)

    def move_over(self, request: PoolRequest) -> None:
        super().move_over(request)
        self._metrics.moved(request)

    def ended(self, request: PoolRequest) -> None:
        super().ended(request)
        before = self.exported.total(CHUNK_TOKENS)
        self._metrics.ended(request)
        counted = self.exported.total(CHUNK_TOKENS) - before
        if request.outcome == "finished" and not request.one_instance and self._all_ran(request):
            assert counted == request.tokens, "every token is in a chunk that was counted"
        self._check_chunks(request, counted)
        self.records.append(record(request, unix_offset_s=0.0))
        self.lines.append(line(request, self.now_s))

    def _all_ran(self, request: PoolRequest) -> bool:
        """Whether a request that finished needed all members to run all chunks."""
        return True

    def _check_chunks(self, request: PoolRequest, counted: float) -> None:
        """SGLang's own batches tell of no chunk of theirs."""
        if not request.one_instance:
            assert counted <= self._computed(request), "a chunk is computed by all of its members"

    def _computed(self, request: PoolRequest) -> int:
        """Tokens of the chunks of which every member has told that it ran."""
        return sum(
            chunk.tokens
            for index, chunk in enumerate(request.plan.chunks if request.plan else ())
            if self.done[(request.seq, index)] >= set(chunk.instances)
        )

    def lose(self, seat: int, why: str = "killed by a test") -> None:
        self._metrics.seat_died(seat, "ended")
        super().lose(seat, why)

    def fill(self, seat: int) -> None:
        super().fill(seat)
        self.fills[seat] += 1
        for state in ("joining", "up"):
            self._metrics.seat_changed(seat, 1 + self.fills[seat], state, "")


class Seen(AnyOrder):
    """The same turns, watched."""

    make_pool: type[FakePool] = SeenPool
    pool: SeenPool

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        super().teardown()
        self._each_end_is_counted_once()
        assert self.pool.exported.total("seat_restarts_total") == self.pool.fills.total()
        assert self.pool.exported.total("lost_requests_total") == len(self.pool.lost_requests)
        assert all(told.isprintable() for told in self.pool.lines)
        self._the_log_can_be_drawn()

    def _each_end_is_counted_once(self) -> None:
        seen, ends = self.pool.exported, self.pool.ends
        assert seen.total("requests_total") == len(ends)
        for outcome in ("finished", "aborted", "failed"):
            tokens = sum(r.prompt_tokens for r in ends if r.outcome == outcome)
            assert seen.counted[("prompt_tokens_total", outcome)] == tokens
        refused = [r for r in ends if r.outcome == "failed" and r.status is HTTPStatus.BAD_REQUEST]
        assert seen.counted[("requests_total", "failed", "request")] >= len(refused)

    def _the_log_can_be_drawn(self) -> None:
        if not self.pool.records:
            return
        with tempfile.TemporaryDirectory() as folder:
            run = read_run(write(Path(folder) / "plans.jsonl", self.pool.records))
        assert len(run.requests) == len(self.pool.ends)
        assert text(run, 0.0, run.end_s, 40)
        assert trace(run)["traceEvents"]


class SeenOneServerPool(SeenPool, OneServerPool):
    """One server that is watched."""

    def ended(self, request: PoolRequest) -> None:
        super().ended(request)
        told = self.records[-1]
        if self.alone(request.rid):
            assert told["output_tokens"] == self.seen[request.rid], "what its client has"
        if request.plan is not None:
            chunks = sum(chunk["tokens"] for chunk in told["chunks"])
            assert chunks == told["prompt_tokens"] + told["resumed_tokens"]
        if told["resumed_tokens"]:
            assert told["ttft_s"]["predicted"] is None

    def _all_ran(self, request: PoolRequest) -> bool:
        """Home goes on without the others, once it has all KV."""
        assert request.plan is not None
        return request.next_chunk == len(request.plan.chunks)


class SeenOneServer(Seen, AnyOrderOfOneServer):
    """One server takes the same turns, with requests that move and that are computed anew."""

    make_pool = SeenOneServerPool
    pool: SeenOneServerPool

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "pool"):
            seen = self.pool.exported
            assert seen.total("moved_requests_total") == len(self.pool.moves_seen)
            assert seen.total("resumed_requests_total") == self.pool.resumed


Seen.TestCase.settings = settings(SETTINGS, max_examples=50)
TestSeen = Seen.TestCase
SeenOneServer.TestCase.settings = settings(SETTINGS, max_examples=50)
TestSeenOneServer = SeenOneServer.TestCase
