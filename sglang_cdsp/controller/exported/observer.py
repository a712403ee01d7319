"""What requests, chunks and seats add to the metrics, when it happens."""

from __future__ import annotations

from collections.abc import Iterable

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.exported.definitions import ENDS
from sglang_cdsp.controller.exported.ends import cause_of
from sglang_cdsp.controller.exported.instruments import Instruments
from sglang_cdsp.controller.prefixes.copy import Copy, Reason
from sglang_cdsp.controller.reports import Reader
from sglang_cdsp.controller.request import ChunkTimes, PoolRequest
from sglang_cdsp.controller.seats.states import Cause, SeatState
from sglang_cdsp.planner.types import PlannedChunk
from sglang_cdsp.protocol.messages import AnyReport, ChunkDone

PLAIN_COUNTERS = (
    "replans_total",
    "recalls_total",
    "passing_requests_total",
    "stopped_tasks_total",
    "kv_transferred_tokens_total",
    "lost_requests_total",
    "resumed_requests_total",
    "moved_requests_total",
    "moved_tokens_total",
    "move_cached_tokens_total",
    "move_seconds_total",
    "reused_tokens_total",
    "unused_cached_tokens_total",
    "prefix_misses_total",
    "copied_tokens_total",
    "copy_seconds_total",
    "failed_prefix_copies_total",
)
SEAT_COUNTERS = (
    "give_ways_total",
    "link_sent_bytes_total",
    "link_wait_seconds_total",
    "history_moves_total",
    "history_moved_tokens_total",
    "busy_seconds_total",
    "seat_restarts_total",
)


class ExportedMetrics(Observer):
    """Counts ended requests with their chunks, changes of plans, seats, and reports of chunks.

    The controller's own measurements are not counted as requests.
    """

    def __init__(
        self,
        instruments: Instruments,
        *,
        seats: int,
        tp_size: int,
        sp_sizes: Iterable[int],
    ) -> None:
        """Show every series that is known of from the start, at 0: rates need a first value, and a
        disk that is full later has nothing to give any more.

        Args:
            seats: instances of the pool, of ``tp_size`` ranks each.
            sp_sizes: candidates.
        """
        self._to = instruments
        self._tp_size = tp_size
        self._lives = dict.fromkeys(range(seats), 1)
        for outcome, cause, _ in ENDS:
            instruments.count("requests_total", 0.0, outcome=outcome, cause=cause)
        for outcome in dict.fromkeys(outcome for outcome, _, _ in ENDS):
            instruments.count("prompt_tokens_total", 0.0, outcome=outcome)
        for name in PLAIN_COUNTERS:
            instruments.count(name, 0.0)
        for reason in Reason:
            instruments.count("prefix_copies_total", 0.0, reason=reason.value)
        for size in sp_sizes:
            instruments.count("chunks_total", 0.0, sp_size=size)
            instruments.count("chunk_tokens_total", 0.0, sp_size=size)
        for seat in range(seats):
            for name in SEAT_COUNTERS:
                instruments.count(name, 0.0, seat=seat)
            for death in Cause:
                instruments.count("seat_deaths_total", 0.0, seat=seat, cause=death.value)

    # -- requests -------------------------------------------------------------------------

    def replanned(self, request: PoolRequest) -> None:
        """The rest of the request got another plan."""
        self._to.count("replans_total")

    def stopped(self, request: PoolRequest) -> None:
        """The request's task was ordered to end before its last chunk had."""
        if not request.probe:
            self._to.count("stopped_tasks_total")

    def lost(self, request: PoolRequest) -> None:
        """The request ends because of an instance that was given up."""
        if not request.probe:
            self._to.count("lost_requests_total")

    def recalled(self, request: PoolRequest) -> None:
        """The request is back among those that wait for a plan; chunks of its old one had run."""
        self._to.count("recalls_total")
        if not request.probe:
            self._chunks(request)
            if request.output.tokens or request.carried is not None:
                self._to.count("resumed_requests_total")

    def moved(self, request: PoolRequest) -> None:
        """Another instance goes on with a request, by the last of its ``moves``."""
        move = request.moves[-1]
        self._to.count("moved_requests_total")
        self._to.count("moved_tokens_total", move.rows - move.cached)
        self._to.count("move_cached_tokens_total", move.cached)
        self._to.count("move_seconds_total", move.arrived_s - move.left_s)

    def copied(self, copy: Copy) -> None:
        """A copy of a cached prefix is over."""
        if copy.arrived_s is None:
            self._to.count("failed_prefix_copies_total")
            return
        self._to.count("prefix_copies_total", reason=copy.reason.value)
        self._to.count("copied_tokens_total", copy.travelling)
        self._to.count("copy_seconds_total", copy.arrived_s - copy.asked_s)

    def ended(self, request: PoolRequest) -> None:
        """A request is over: all that is known of it is counted now."""
        if request.probe:
            return
        outcome = request.outcome
        self._to.count("requests_total", outcome=outcome, cause=cause_of(request))
        self._to.count("prompt_tokens_total", request.prompt_tokens, outcome=outcome)
        self._to.count("prefix_misses_total", float(request.missed))
        if request.plan is None:
            return
        self._chunks(request)
        if request.resumes is None:  # else these waits are not from its arrival
            self._waits(request)
        if outcome == "finished":
            self._to.observe("request_chunks", len(request.plan.chunks))
            reused = request.plan.reused
            self._to.count("reused_tokens_total", reused)
            self._to.count("unused_cached_tokens_total", max(0, request.plan.cached - reused))
            if request.plan.passes:
                self._to.count("passing_requests_total")
        self._first_token(request)

    def _chunks(self, request: PoolRequest) -> None:
        """Count the chunks of a plan that is over."""
        if request.plan is None:
            return
        # Members report one by one; a chunk in which one was lost has times, but is not computed.
        computed = 1 if request.one_instance else request.next_chunk
        for planned, times in zip(request.plan.chunks[:computed], request.times, strict=False):
            self._chunk(planned, times)

    def _chunk(self, planned: PlannedChunk, times: ChunkTimes) -> None:
        if times.start_s is None or times.end_s is None:
            return
        size, planned_s = planned.sp_size, planned.end_s - planned.start_s
        seconds = max(times.end_s - times.start_s - times.passed_s, 0.0)
        self._to.count("chunks_total", sp_size=size)
        self._to.count("chunk_tokens_total", planned.tokens, sp_size=size)
        self._to.observe("chunk_seconds", seconds, sp_size=size)
        self._to.observe("give_way_seconds", times.passed_s)
        if planned_s > 0:
            self._to.observe("planned_chunk_seconds", planned_s, sp_size=size)
            self._to.observe("chunk_ratio", seconds / planned_s, sp_size=size)

    def _waits(self, request: PoolRequest) -> None:
        self._to.observe("queue_seconds", request.bound_s - request.arrival_s, stage="plan")
        start_s = request.times[0].start_s if request.times else None
        if start_s is not None:
            self._to.observe("queue_seconds", max(start_s - request.bound_s, 0.0), stage="turn")

    def _first_token(self, request: PoolRequest) -> None:
        if request.first_token_s is None or request.plan is None:
            return
        ttft_s = request.first_token_s - request.arrival_s
        self._to.observe("ttft_seconds", ttft_s)
        if request.resumes is None:  # else it was of an earlier plan
            planned_s = request.bound_s - request.arrival_s + request.plan.ttft_s
            self._to.observe("planned_ttft_seconds", planned_s)
            if planned_s > 0:
                self._to.observe("ttft_ratio", ttft_s / planned_s)
        if request.room is not None and request.outcome == "finished":
            self._to.count("kv_transferred_tokens_total", request.tokens)
            if request.drained_s is not None:
                seconds = max(request.drained_s - request.first_token_s, 0.0)
                self._to.observe("kv_transfer_seconds", seconds)

    # -- seats ----------------------------------------------------------------------------

    def seat_changed(self, seat: int, incarnation: int, state: str, why: str) -> None:
        """A seat is in another state now."""
        if state == SeatState.UP.value and incarnation > self._lives.get(seat, 0):
            self._lives[seat] = incarnation
            self._to.count("seat_restarts_total", seat=seat)

    def seat_died(self, seat: int, cause: str) -> None:
        """A life of a seat was given up."""
        self._to.count("seat_deaths_total", seat=seat, cause=cause)

    # -- schedulers -----------------------------------------------------------------------

    def on_report(self, report: AnyReport) -> None:
        """A scheduler reports; what it counted during a chunk comes with the chunk's end.

        The leading rank speaks for its instance, whose ranks send as much each.
        """
        if not isinstance(report, ChunkDone):
            return
        seat = report.instance
        self._to.count("give_ways_total", report.gave_way, seat=seat)
        self._to.count("link_sent_bytes_total", report.sent_bytes * self._tp_size, seat=seat)
        self._to.count("link_wait_seconds_total", report.waited_s, seat=seat)
        if report.moved_tokens:
            self._to.count("history_moves_total", seat=seat)
            self._to.count("history_moved_tokens_total", report.moved_tokens, seat=seat)


class CountedReports:
    """Implements ``Reader``: reports go to another one, and then count."""

    def __init__(self, reader: Reader, metrics: ExportedMetrics) -> None:
        self._reader = reader
        self._metrics = metrics

    def on_report(self, report: AnyReport) -> None:
        """Pass a report on; one that does not fit is not counted."""
        self._reader.on_report(report)
        self._metrics.on_report(report)
