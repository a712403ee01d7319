"""What reaches the metrics of `/metrics`, and what cannot hurt the pool."""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from prometheus_client import CollectorRegistry

from sglang_cdsp.controller.exported.definitions import ENDS, METRICS, PREFIX, Kind
from sglang_cdsp.controller.exported.ends import cause_of
from sglang_cdsp.controller.exported.instruments import (
    NoInstruments,
    PrometheusInstruments,
    make_instruments,
)
from sglang_cdsp.controller.exported.levels import Levels
from sglang_cdsp.controller.exported.observer import CountedReports, ExportedMetrics
from sglang_cdsp.controller.prefixes.copy import Copy, Reason
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.request import ChunkTimes, MoveTimes, PoolRequest
from sglang_cdsp.planner.roles import parse_roles
from sglang_cdsp.planner.types import PlannedChunk
from sglang_cdsp.protocol.messages import ChunkDone, OutputState, Ready
from tests.controller.ended import finished
from tests.controller.fake_pool import FakePool
from tests.controller.roles import pool_of


class Scraped:
    """A pool's metrics in a registry of their own."""

    def __init__(self, seats: int = 4, tp_size: int = 2) -> None:
        self.registry = CollectorRegistry()
        self.instruments = PrometheusInstruments({"model_name": "m"}, self.registry)
        self.metrics = ExportedMetrics(
            self.instruments, seats=seats, tp_size=tp_size, sp_sizes=(1, 2, 4)
        )

    def __call__(self, name: str, **labels: str) -> float | None:
        value: float | None = self.registry.get_sample_value(
            PREFIX + name, {"model_name": "m", **labels}
        )
        return value


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_a_finished_request_counts_with_its_chunks(scraped: Scraped) -> None:
    request = finished()
    request.room = 7
    request.times[1].own_s = 1.0  # of one and a half
    scraped.metrics.ended(request)
    assert scraped("requests_total", outcome="finished", cause="none") == 1
    assert scraped("prompt_tokens_total", outcome="finished") == 100
    assert scraped("chunks_total", sp_size="1") == scraped("chunks_total", sp_size="2") == 1
    assert scraped("chunk_tokens_total", sp_size="2") == 36
    assert scraped("chunk_seconds_sum", sp_size="2") == pytest.approx(1.0)
    assert scraped("planned_chunk_seconds_sum", sp_size="2") == pytest.approx(2.0)
    assert scraped("chunk_ratio_sum", sp_size="2") == pytest.approx(0.5)
    assert scraped("give_way_seconds_sum") == pytest.approx(0.5)
    assert scraped("give_way_seconds_count") == 2
    assert scraped("queue_seconds_sum", stage="plan") == pytest.approx(1.0)
    assert scraped("queue_seconds_sum", stage="turn") == pytest.approx(0.5)
    assert scraped("ttft_seconds_sum") == pytest.approx(4.5)
    assert scraped("planned_ttft_seconds_sum") == pytest.approx(4.0)
    assert scraped("ttft_ratio_sum") == pytest.approx(4.5 / 4.0)
    assert scraped("request_chunks_sum") == 2
    assert scraped("kv_transfer_seconds_sum") == pytest.approx(0.25)
    assert scraped("kv_transferred_tokens_total") == 100


def test_a_chunk_in_which_a_member_was_lost_is_not_computed(scraped: Scraped) -> None:
    """The other member has reported, so that it has times."""
    request = finished()
    request.next_chunk, request.error, request.lost = 1, "instance 0 was lost", {0}
    scraped.metrics.ended(request)
    assert scraped("chunks_total", sp_size="1") == 1
    assert scraped("chunks_total", sp_size="2") == 0
    assert scraped("requests_total", outcome="failed", cause="instance") == 1


def test_a_request_of_sglangs_own_batches_counts_as_one_chunk(scraped: Scraped) -> None:
    request = finished()
    assert request.plan is not None
    request.plan = replace(request.plan, chunks=(PlannedChunk(100, (1,), 0.5, 1.0),))
    request.times, request.next_chunk, request.one_instance = request.times[:1], 0, True
    scraped.metrics.ended(request)
    assert scraped("chunks_total", sp_size="1") == 1
    assert scraped("chunk_tokens_total", sp_size="1") == 100


def test_what_is_computed_anew_counts_its_chunks_again_and_waits_but_once(
    scraped: Scraped,
) -> None:
    request = finished()
    request.output.tokens = [5] * 12
    scraped.metrics.recalled(request)
    assert scraped("chunk_tokens_total", sp_size="2") == 36
    assert scraped("resumed_requests_total") == 1
    assert scraped("ttft_seconds_count") is None
    request.resumes, request.tokens = OutputState(tokens=[5] * 12, sent=12), 112
    assert request.plan is not None
    chunks = (PlannedChunk(112, (1, 0), 0.5, 1.0),)
    request.plan, request.times = replace(request.plan, chunks=chunks), [ChunkTimes(109.0, 110.0)]
    request.bound_s, request.next_chunk = 108.0, 1
    scraped.metrics.ended(request)
    assert scraped("prompt_tokens_total", outcome="finished") == 100
    assert scraped("chunk_tokens_total", sp_size="2") == 36 + 112
    assert scraped("ttft_seconds_sum") == pytest.approx(4.5)
    assert scraped("queue_seconds_count", stage="plan") is None
    assert scraped("planned_ttft_seconds_count") is None


def test_moves_count_when_the_next_instance_goes_on(scraped: Scraped) -> None:
    request = finished()
    request.moves = [MoveTimes(1, 2, 105.0, 106.0, 106.5, 120, 70, 40)]
    scraped.metrics.moved(request)
    assert scraped("moved_requests_total") == 1
    assert scraped("moved_tokens_total") == 80
    assert scraped("move_cached_tokens_total") == 40
    assert scraped("move_seconds_total") == pytest.approx(0.5)


def test_each_rank_sends_as_much_as_its_leading_one() -> None:
    """Scheduler ranks that do not lead report no chunk: their bytes come with the leader's."""
    done = ChunkDone(instance=1, tp_rank=0, at_s=2.0, seq=1, chunk=0, start_s=1.0, sent_bytes=7)
    for tp_size in (1, 2, 4):
        scraped = Scraped(tp_size=tp_size)
        scraped.metrics.on_report(done)
        assert scraped("link_sent_bytes_total", seat="1") == 7 * tp_size


def test_counters_of_a_seat_go_on_with_its_next_life(scraped: Scraped) -> None:
    """A new process counts from nothing, but tells only what is new."""
    first = ChunkDone(
        instance=1, tp_rank=0, at_s=2.0, seq=1, chunk=0, start_s=1.0, sent_bytes=100, gave_way=2
    )
    scraped.metrics.on_report(first)
    scraped.metrics.seat_died(1, "ended")
    scraped.metrics.seat_changed(1, 2, "up", "")
    scraped.metrics.on_report(structs.replace(first, incarnation=2, sent_bytes=1, gave_way=1))
    assert scraped("link_sent_bytes_total", seat="1") == 202
    assert scraped("give_ways_total", seat="1") == 3


def test_probes_do_not_count(scraped: Scraped) -> None:
    probe = finished()
    probe.tokenized = None
    scraped.metrics.ended(probe)
    scraped.metrics.stopped(probe)
    scraped.metrics.lost(probe)
    assert scraped("requests_total", outcome="finished", cause="none") == 0
    assert scraped("stopped_tasks_total") == scraped("lost_requests_total") == 0


def ended(**fields: Any) -> PoolRequest:
    request = PoolRequest("r", object(), 1, 0.0)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "cause"),
    [
        (ended(), "none"),
        (ended(aborted=True, error="x"), "client"),
        (ended(aborted=True, error="x", cause="decode"), "decode"),
        (ended(error="x"), "server"),
        (ended(error="x", status=HTTPStatus.BAD_REQUEST), "request"),
        (ended(error="x", cause="request"), "request"),
        (ended(error="x", status=HTTPStatus.SERVICE_UNAVAILABLE), "capacity"),
        (ended(error="x", status=HTTPStatus.SERVICE_UNAVAILABLE, lost={1}), "instance"),
        (ended(error="x", cause="request", lost={1}), "request"),
    ],
)
def test_causes(request_: PoolRequest, cause: str) -> None:
    assert cause_of(request_) == cause


@given(
    st.booleans(),
    st.sampled_from(["", "why"]),
    st.sampled_from(["", "decode", "request", "client"]),
    st.sampled_from([400, 500, 503]),
    st.sets(st.integers(0, 3)),
)
@settings(deadline=None)
def test_every_end_is_one_of_the_table(
    aborted: bool, error: str, cause: str, status: int, lost: set[int]
) -> None:
    request = ended(aborted=aborted, error=error, cause=cause, status=HTTPStatus(status), lost=lost)
    assert (request.outcome, cause_of(request)) in {(o, c) for o, c, _ in ENDS}


def test_seats_count(scraped: Scraped) -> None:
    scraped.metrics.seat_died(1, "ended")
    for life, state in ((1, "ending"), (2, "starting"), (2, "up"), (2, "draining"), (2, "up")):
        scraped.metrics.seat_changed(1, life, state, "")
    assert scraped("seat_deaths_total", seat="1", cause="ended") == 1
    assert scraped("seat_restarts_total", seat="1") == 1
    assert scraped("seat_restarts_total", seat="0") == 0


def test_what_schedulers_count_comes_with_their_chunks(scraped: Scraped) -> None:
    class Reader:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_report(self, report: Any) -> None:
            self.heard.append(report)

    reader = Reader()
    counted = CountedReports(reader, scraped.metrics)
    done = ChunkDone(
        instance=2,
        tp_rank=0,
        at_s=2.0,
        seq=1,
        chunk=0,
        start_s=1.0,
        passed_s=0.25,
        gave_way=3,
        sent_bytes=100,
        waited_s=0.5,
        moved_tokens=64,
    )
    reports = (Ready(instance=2, tp_rank=0, at_s=0.0, seq=1, chunk=0), done)
    for report in reports:
        counted.on_report(report)
    assert reader.heard == list(reports)
    assert scraped("give_ways_total", seat="2") == 3
    assert scraped("link_sent_bytes_total", seat="2") == 200
    assert scraped("link_wait_seconds_total", seat="2") == 0.5
    assert scraped("history_moves_total", seat="2") == 1
    assert scraped("history_moved_tokens_total", seat="2") == 64


def test_levels_are_those_of_the_pool(pool: FakePool) -> None:
    scraped = Scraped()
    levels = Levels(
        scraped.instruments,
        requests=pool.lifecycle,
        ledger=pool.ledger,
        planning=pool.planning,
        decode=pool.decode_servers,
        up=lambda: (0, 1, 3),
        decodes=False,
    )
    pool.submit(500, room=4)
    pool.submit(300, plan=[(100, [0]), (200, [0, 1])])
    levels.tick(10.0, ())
    assert scraped("waiting_requests", reason="decode") == 1
    assert scraped("waiting_requests", reason="plan") == 1
    assert scraped("waiting_tokens") == 800
    assert scraped("free_kv_tokens", seat="0") == scraped("kv_capacity_tokens", seat="0") == 4096
    assert (scraped("seats"), scraped("seats_up")) == (4, 3)
    assert (scraped("seat_up", seat="2"), scraped("seat_up", seat="3")) == (0, 1)
    assert scraped("seat_role", seat="2", role="prefill") == 1, "it has no other one here"
    assert scraped("seat_role", seat="2", role="both") == 0
    assert scraped("cached_pages", seat="2") == 0, "a series of the dashboard, in every form"
    assert scraped("improvement_rate") == pool.planning.regulator.rate
    assert scraped("latency_correction", sp_size="1") == 1
    pool.turn()
    levels.tick(10.5, ())
    assert scraped("running_requests", state="queued") == 0, "looked at once a second"
    levels.tick(11.0, {0})
    assert scraped("running_requests", state="queued") == 1
    assert scraped("free_kv_tokens", seat="0") != 4096
    levels.tick(11.25, {0, 1})
    levels.tick(12.0, ())
    levels.tick(20.0, ())
    assert scraped("busy_seconds_total", seat="0") == pytest.approx(1.0)
    assert scraped("busy_seconds_total", seat="1") == pytest.approx(0.75)


def test_roles_are_those_in_force() -> None:
    pool, scraped = pool_of("4b"), Scraped()
    levels = Levels(
        scraped.instruments,
        requests=pool.lifecycle,
        ledger=pool.ledger,
        planning=pool.planning,
        decode=pool.decode_servers,
        up=lambda: range(4),
        decodes=True,
    )
    levels.tick(1.0, ())
    assert scraped("seat_role", seat="3", role="both") == 1
    pool.ledger.take_roles(parse_roles("3p1d"))
    levels.tick(2.0, ())
    assert scraped("seat_role", seat="3", role="both") == 0
    assert scraped("seat_role", seat="3", role="decode") == 1
    assert scraped("seat_role", seat="0", role="prefill") == 1
    assert scraped("decoding_requests", seat="3") == 0


def test_series_are_there_from_the_start(scraped: Scraped) -> None:
    for metric in METRICS:
        if metric.kind is Kind.COUNTER:
            found = [
                sample
                for family in scraped.registry.collect()
                for sample in family.samples
                if sample.name == metric.full_name
            ]
            assert found, metric.name
            assert all(sample.value == 0 for sample in found)


def test_a_metric_that_cannot_be_kept_costs_a_warning(
    scraped: Scraped, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scraped.instruments.count("no such metric")
        scraped.instruments.put("seats", 1.0, surplus="label")
        scraped.instruments.observe("chunk_seconds", 1.0)
    assert len(caplog.messages) == 1


def test_gauges_that_cannot_be_read_cost_a_warning(
    pool: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("no seats")

    levels = Levels(
        NoInstruments(),
        requests=pool.lifecycle,
        ledger=pool.ledger,
        planning=pool.planning,
        decode=pool.decode_servers,
        up=broken,
        decodes=True,
    )
    with caplog.at_level(logging.ERROR):
        levels.tick(1.0, ())
        levels.tick(3.0, ())
    assert len(caplog.messages) == 1


def test_without_metrics_nothing_is_kept() -> None:
    assert isinstance(make_instruments({}, enabled=False), NoInstruments)
    names = {"requests_total": "count", "seats": "put", "ttft_seconds": "observe"}
    for name, method in names.items():
        getattr(NoInstruments(), method)(name, 1.0)


def test_labels_of_the_server_are_on_all_metrics() -> None:
    registry = CollectorRegistry()
    made = PrometheusInstruments({"model_name": "m", "zone": "a", "seat": "own"}, registry)
    made.put("seat_up", 1.0, seat=3)
    labels = {"model_name": "m", "zone": "a", "seat": "3"}
    assert registry.get_sample_value(f"{PREFIX}seat_up", labels) == 1.0


def test_copies_of_prefixes_count_by_what_they_are_for(scraped: Scraped) -> None:
    pages = PageHashes(range(32), 16)
    one = Copy(-1, Reason.PLAN, 0, 1, pages, 32, 0, 1, 10.0, held=16, arrived_s=10.5)
    scraped.metrics.copied(one)
    scraped.metrics.copied(replace(one, arrived_s=None, error="a link broke"))
    assert scraped("prefix_copies_total", reason="plan") == 1
    assert scraped("prefix_copies_total", reason="use") == 0
    assert scraped("copied_tokens_total") == 16
    assert scraped("copy_seconds_total") == 0.5
    assert scraped("failed_prefix_copies_total") == 1
